"""What the commands that use a run have in common; light enough to be imported before anything is known to be there."""

import argparse
from pathlib import Path

from shards.errors import ConfigError, DataError
from trainer.config import RunConfig
from trainer.config.exported import EXPORT_FILE, RECIPE, way_to_a_new_one


def add_pipeline_option(parser: argparse.ArgumentParser) -> None:
    """Add `--pipeline`, the way to an answer."""
    parser.add_argument(
        "--pipeline",
        choices=("direct", "pnp"),
        default="direct",
        help="direct: the trained model's own answers; pnp: T5's, from captions of what the model's heatmap points at",
    )


def other_than_fusion(config: RunConfig) -> str | None:
    """What a run has in the place of a trained fusion, for a message; None where it has that."""
    if config.model.vlm is not None:
        return "a vision-language model"
    if config.model.reader is not None:
        return "a reader of words"
    return None if config.model.retrieval is None else "a retrieval of pages"


def check_run(run: Path) -> None:
    """Refuse what is no directory of a run or of an export before anything heavy is imported.

    Raises:
        ConfigError: it has no config.yaml.
        DataError: it is an export of the time before there was one in it.
    """
    if (run / RECIPE).is_file():
        return
    if (run / EXPORT_FILE).is_file():
        raise DataError(f"{run}: of an older duoflow, without {RECIPE}; {way_to_a_new_one(run)}")
    raise ConfigError(
        f"{run}: no run here, and no export (no {RECIPE}); name the directory of a run, such as runs/NAME, or an export"
    )
