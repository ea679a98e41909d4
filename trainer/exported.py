"""The exported model of a run, loaded in a process of its own: what evaluates, answers and describes works with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers.utils import logging as transformers_logging

from model.build import BuiltModel
from shards.errors import ConfigError, DataError
from trainer.build import assemble_model
from trainer.config import RunConfig, load_config
from trainer.deepspeed_config import resolve_precision
from trainer.distributed import device_type
from trainer.export import exported_model_config, load_exported_adapters, load_fusion
from trainer.run_directory import RunDirectory

Weights = Literal["trained", "initial"]

OVERRIDABLE = ("pnp.", "model.guidance.")
"""What may differ from the recipe of the run: nothing that its weights depend on."""

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Exported(NamedTuple):
    """A model on its device, in evaluation mode."""

    config: RunConfig
    built: BuiltModel
    device: torch.device
    dtype: torch.dtype


def read_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe of a run.

    Raises:
        ConfigError: there is no run, or an override is wrong or of a key that its weights depend on.
    """
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise ConfigError(f"{path}: no run in it; expected a run directory such as runs/NAME, with a config.yaml")
    for override in overrides:
        if not override.startswith(OVERRIDABLE):
            raise ConfigError(
                f"{override}: is settled by the run; what can be changed begins with {' or '.join(OVERRIDABLE)}"
            )
    return load_config(directory.config, overrides)


def load_exported(path: Path, config: RunConfig, *, weights: Weights = "trained") -> Exported:
    """Load the export of a run onto this machine's GPU, or its CPU.

    Args:
        path: the run directory.
        config: of `read_run`.
        weights: `initial` leaves the fusion encoder as the seed made it: where training began.

    Raises:
        ConfigError, DataError: the export is missing, damaged, or that of another recipe.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device, export = torch.device(device_type()), RunDirectory(path).export
    model = exported_model_config(config.model, export)
    built = assemble_model(config, model=model, scratch_tokenizer=_no_scratch_left)
    objective = built.objective
    if weights == "trained":
        load_fusion(objective, export)
        load_exported_adapters(objective, export)
    dtype = _DTYPES[resolve_precision(config.precision, device.type, t5_is_trained=objective.trains_t5)]
    objective.to(device=device, dtype=dtype).eval()
    objective.place_frozen(device, dtype)
    return Exported(config, built, device, dtype)


def _no_scratch_left() -> None:
    raise DataError("export: a part of the recipe is `scratch` and was not exported; train the run again")
