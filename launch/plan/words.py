"""What may stand in a command that another machine's shell reads: only words that mean themselves in every shell.

Quoting does not help here. The deepspeed runner joins its words with blanks, puts some into double quotes (where
`$(...)` still runs), and pdsh replaces %h, %n and %u in all of them.
"""

import re

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
"""No leading `-`: ssh would take the name for an option."""
_PATH = re.compile(r"/[A-Za-z0-9_@+=:,./-]*")
_VALUE = re.compile(r"[A-Za-z0-9_@+=:,./^-]*")
"""As a path, and `^`, with which NCCL_SOCKET_IFNAME excludes: DeepSpeed's double quotes keep it."""


class LaunchFault(Exception):
    """Something that keeps a launch from starting and that the user can mend; one line, and nothing was started."""


def is_host(name: str) -> bool:
    """Whether a host name is nothing but a host name."""
    return _HOST.fullmatch(name) is not None


def safe_path(what: str, path: str) -> str:
    """An absolute path, if it can stand in a remote command.

    Args:
        what: what a message calls it.

    Raises:
        LaunchFault: it is relative, or has a character that a shell or pdsh reads as something else.
    """
    if not _PATH.fullmatch(path):
        raise LaunchFault(
            f"{what}: {path!r}: beyond one node a path is absolute and holds letters, digits and _@+=:,./- alone, "
            "because a remote shell reads it; move it to such a path"
        )
    return path


def safe_value(what: str, value: str) -> str:
    """A value, if it can stand in a remote command.

    Args:
        what: what a message calls it.

    Raises:
        LaunchFault: it has a character that a shell or pdsh reads as something else.
    """
    if not _VALUE.fullmatch(value):
        raise LaunchFault(
            f"{what}: {value!r}: beyond one node a value holds letters, digits and _@+=:,./^- alone, because a remote "
            "shell reads it; change it or unset it"
        )
    return value
