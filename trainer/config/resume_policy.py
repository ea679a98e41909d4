"""What may change between two starts of the same run: nothing that decides data, order, model or seed."""

from typing import Any, Literal, NamedTuple

from shards.errors import ConfigError
from trainer.config.faults import leaf_keys
from trainer.config.schema import RunConfig
from trainer.config.yaml_text import format_value
from trainer.engine.optimizers import DEFAULT

Policy = Literal["free", "logged", "refused"]

_FREE = (
    "run.name",
    "run.directory",
    "data.testdev",
    "data.test",
    "data.challenge",
    "data.workers",
    "data.cache.",
    "data.features_directory",
    "pnp.",
    "engine.processes",
    "engine.timeout_seconds",
    "engine.start_timeout_seconds",
    "engine.heartbeat_seconds",
    "validate_every.epochs",
    "validate_every.steps",
    "early_stopping.patience",
    "early_stopping.min_delta",
    "checkpoint.",
    "limits.",
    "logging.",
)
"""Keys, and sections with a dot at the end."""
_REFUSED = ("optim.name", "optim.options")
"""Another optimizer keeps other things of each parameter than those in the checkpoint."""
_LOGGED = (
    "optim.",
    "batch.micro_visits",
    "batch.micro_tokens",
    "engine.policy",
    "engine.link_gbits",
    "validate_every.max_images",
    "data.features",
    "data.retrieved",
    "data.retrieved_pages",
)
"""Another learning rate is an experiment; another micro-batch or ZeRO stage is how the same batch fits other machines;
cached tokens are rounded; on other images or pages, a validation says something else than the best one did."""


_ADAMW = {"optim.betas": (0.9, 0.999), "optim.eps": 1e-8}
"""What null is to AdamW."""


class Difference(NamedTuple):
    """A dotted key whose value is not what it was."""

    key: str
    old: Any
    new: Any

    @property
    def policy(self) -> Policy:
        return resume_policy(self.key)

    def __str__(self) -> str:
        return f"{self.key}: was {format_value(_plain(self.old))}, is {format_value(_plain(self.new))}"


def resume_policy(key: str) -> Policy:
    """Whether a run may go on with another value of this key: silently, with a line in the log, or not at all."""
    for policy, keys in (("refused", _REFUSED), ("free", _FREE), ("logged", _LOGGED)):
        if any(key == name or (name.endswith(".") and key.startswith(name)) for name in keys):
            return policy
    return "refused"


def config_diff(old: RunConfig, new: RunConfig) -> list[Difference]:
    """The keys whose values differ, in the order of their declaration; defaults that depend on others are filled in."""
    pairs = [(key, _value(old, key), _value(new, key)) for key in leaf_keys(RunConfig)]
    return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]


def check_resumable(old: RunConfig, new: RunConfig, run: str) -> list[Difference]:
    """The differences to put in the log when a run goes on.

    Args:
        run: what an error calls the run, such as its directory.

    Raises:
        ConfigError: a difference would make it another run; one line for each.
    """
    differences = config_diff(old, new)
    refused = [difference for difference in differences if difference.policy == "refused"]
    if refused:
        lines = [f"{run}: {difference}; this cannot change when a run goes on" for difference in refused]
        lines.append(f"{run}: put the old values back, give it another run.name, or start over with --fresh")
        raise ConfigError("\n".join(lines))
    return [difference for difference in differences if difference.policy == "logged"]


def _value(config: RunConfig, key: str) -> Any:
    if key == "batch.lanes":
        return config.batch.resolved_lanes
    if key == "model.text_start":
        return config.model.resolved_text_start
    if key in _ADAMW and config.optim.name == DEFAULT and getattr(config.optim, key.partition(".")[2]) is None:
        return _ADAMW[key]
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
