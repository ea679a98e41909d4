"""What a recipe sets: the keys whose values are not those of an empty recipe."""

from trainer.config.resume_policy import config_diff
from trainer.config.schema import RunConfig

_OF_ONE_RUN = ("run.", "logging.")
"""Where a run lies and what is recorded of it tells nothing about what it learns."""


def set_by_recipe(config: RunConfig) -> dict[str, str | int | float | bool]:
    """By dotted key, in the order of the declaration; what is no number, word or truth value is written out."""
    return {
        key: value if isinstance(value, (str, int, float, bool)) else f"{value}"
        for key, _, value in config_diff(RunConfig.model_construct(), config)
        if not key.startswith(_OF_ONE_RUN)
    }
