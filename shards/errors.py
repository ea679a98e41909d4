"""The one error family that a user sees: a single clear line, exit code 2, no traceback."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: where (file, dotted key, shard and sample, rank), what was found, what was expected and
    the way out. The command line prints it to stderr and exits with 2.
    """


class ConfigError(UserError):
    """A recipe, an override or a policy file says something that cannot be run; the message names the dotted key."""


class DataError(UserError):
    """Annotations, images or shards are not what they should be; the message names file, shard, sample or offset."""
