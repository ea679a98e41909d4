"""Whether a machine has room for a run: a disk that takes its files, and memory for what is plain from the recipe."""

import os
import shutil

from launch.processes.memory import memory_bytes
from model.config import ModelConfig, text_towers
from model.references import SCRATCH
from shards.errors import ConfigError, UserError
from shards.tasks import TASKS
from trainer.config import RunConfig
from trainer.run_directory import RunDirectory

BYTES_PER_PARAMETER = 16
"""Of a trained parameter in fp32: itself, its gradient and Adam's two moments."""


def check_disk(run: RunDirectory, needed: int = 0) -> None:
    """Whether a run's directory can be made and takes so many bytes. Nothing is written.

    Raises:
        UserError: it cannot, or does not.
    """
    place = run.path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"run.directory: {place} is a file, so that {run.path} cannot be made; name another place")
    if os.statvfs(place).f_flag & os.ST_RDONLY or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"run.directory: {place} cannot be written to, so that {run.path} cannot be made; name a place that can"
        )
    free = shutil.disk_usage(place).free
    if free <= needed:
        wanted = f"the checkpoints of this run take {_gb(needed)}" if needed else "a run has to write something"
        raise UserError(
            f"run.directory: {_gb(free)} are free on the disk of {place}, and {wanted}; free some, or name another"
        )


def check_memory(config: RunConfig, *, on_gpu: bool) -> None:
    """Whether the towers that a recipe builds from scratch can fit this machine at all; only what is plain is refused.

    Raises:
        ConfigError: they cannot.
    """
    model = config.model
    if on_gpu or model.vlm is not None or model.reader is not None or model.retrieval is not None:
        return
    parameters, total = scratch_parameters(model, len(text_towers(TASKS[config.task], config.losses))), memory_bytes()
    needed = BYTES_PER_PARAMETER * parameters
    if needed > total:
        raise ConfigError(
            f"model.scratch: width {model.scratch.width:,} with {model.scratch.vision_layers} and "
            f"{model.scratch.text_layers} layers has {parameters:,} parameters or more, which take {_gb(needed)} in "
            f"training, and this machine has {_gb(total)}; lower model.scratch.width"
        )


def scratch_parameters(model: ModelConfig, text_towers: int) -> int:
    """Parameters of untrained towers, from below: the matrices of their layers and their words.

    Args:
        text_towers: how many read text.
    """
    scratch = model.scratch
    layer = 12 * scratch.width**2
    vision = scratch.vision_layers * layer if model.vision == SCRATCH else 0
    scratch_texts = [reference for reference in {model.match, model.answer} if reference == SCRATCH]
    text = scratch.text_layers * layer + scratch.vocab_size * scratch.width if scratch_texts and text_towers else 0
    return vision + text


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
