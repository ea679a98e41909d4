"""The exported model of a run, loaded in a process of its own: what evaluates, answers and describes works with it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers.utils import logging as transformers_logging

from model.reader.build import BuiltReader
from model.retrieval.build import BuiltRetrieval
from model.vlm.build import BuiltVlm
from shards.errors import ConfigError, DataError
from shards.format.index import open_index
from trainer.build import AnyBuilt, assemble_model, classes_of
from trainer.config import RunConfig, load_run_config
from trainer.config.exported import MANIFEST, RECIPE, export_of, read_manifest, with_frozen
from trainer.engine.deepspeed_config import resolve_precision
from trainer.engine.distributed import device_type
from trainer.export.initial_weights import initialize_from, start_answers
from trainer.export.manifest import check_frozen, verified
from trainer.export.reader import load_beside
from trainer.export.run_arguments import check_run
from trainer.export.write import (
    exported_classes,
    exported_model_config,
    load_exported_adapters,
    load_fusion,
    load_heads,
)

Weights = Literal["trained", "initial"]
Pipeline = Literal["direct", "pnp"]
"""Whose answers: the trained model's own, or those that T5 reads from captions of what its heatmap points at."""

DATA = (
    *("data.val=", "data.testdev=", "data.test=", "data.challenge=", "data.retrieved=", "data.retrieved_pages="),
    *("data.features=", "data.features_directory=", "data.workers=", "precision="),
)
"""What may differ from the recipe of a run wherever its export is used: nothing that its weights depend on."""
LOOKS = ("model.guidance.",)
"""What decides where an answer is looked for; of no effect where nothing looks."""
PNP = ("pnp.",)
ANSWERS = ("answers.by=", "answers.candidates=", "answers.double_first_token=")
"""How answers are had of a model that has learnt them in several ways."""
LOOKS_WITH = ("pnp.looks_with=",)
RANKS = ("engine.processes=",)
"""How many processes of this machine share what is computed."""

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Exported(NamedTuple):
    """A model on its device, in evaluation mode."""

    config: RunConfig
    built: AnyBuilt
    device: torch.device
    dtype: torch.dtype


def read_run(path: Path, overrides: Sequence[str] = (), *, open_keys: Sequence[str] = DATA) -> RunConfig:
    """The recipe of a run, or of an export.

    Args:
        overrides: `key=value` in place of the recipe's.
        open_keys: how those begin that may be given.

    Raises:
        ConfigError: there is no run, or an override is wrong, of no effect, or of a key that its weights depend on.
    """
    check_run(path)
    may_be_elsewhere = _frozen_keys(path) if overrides else ()
    for override in overrides:
        if not override.startswith((*open_keys, *may_be_elsewhere)):
            fate = "has no effect here" if override.startswith((*LOOKS, *PNP)) else "is settled by the run"
            raise ConfigError(f"{override}: {fate}; what can be given begins with {', '.join(open_keys)}")
    config = load_run_config(path / RECIPE, overrides)
    guided = config.model.second_stream == "efficient_sam_masks"
    for override in overrides:
        if guided and override.startswith(LOOKS):
            raise ConfigError(f"{override}: is settled by the run, whose second stream was trained under its guidance")
        if guided and override.startswith(LOOKS_WITH) and config.pnp.looks_with == "fused":
            raise ConfigError(
                f"{override}: this run looks before it fuses, since its fusion needs the masks; use plain"
            )
    return config


def open_keys(*, looks: bool, pnp: bool, chooses: bool = False) -> tuple[str, ...]:
    """How the overrides begin that have an effect, where something looks, where PNP-VQA answers, and where it is open
    whose answers are taken."""
    return (*DATA, *(ANSWERS if chooses else ()), *(LOOKS if looks else ()), *(PNP if pnp else ()))


def load_exported(
    path: Path,
    config: RunConfig,
    *,
    weights: Weights = "trained",
    device: torch.device | None = None,
    look: Callable[[AnyBuilt], None] = lambda _: None,
) -> Exported:
    """Load an export, or that of a run.

    Args:
        path: the directory of either.
        config: of `read_run`.
        weights: `initial` leaves the fusion encoder as the seed made it: where training began.
        device: None is this machine's GPU, or its CPU.
        look: is shown the model before it is cast to its precision.

    Raises:
        ConfigError, DataError: the export is missing, damaged, or that of another recipe; a file of it, or a frozen
            checkpoint, is not the one that it was written with.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device, export = torch.device(device_type()) if device is None else device, export_of(path)
    manifest = verified(export)
    config = config.model_copy(update={"model": with_frozen(config.model, export, manifest)})
    absent = check_frozen(config, manifest)
    as_started = config.model.retrieval is not None and weights == "initial"
    model = config.model if as_started else exported_model_config(config.model, export)
    built = assemble_model(
        config, model=model, scratch_tokenizer=_no_scratch_left, classes=_classes(config, exported_classes(export))
    )
    if absent:
        check_frozen(config, manifest)  # they were fetched
    objective = built.objective
    if weights == "trained" and isinstance(built, BuiltVlm):
        load_exported_adapters(objective, export)
        load_heads(objective, export)
    elif weights == "trained" and isinstance(built, BuiltReader):
        load_exported_adapters(objective, export)
        load_beside(objective, export)
    elif weights == "trained" and not isinstance(built, BuiltRetrieval):
        load_fusion(objective, export)
        load_exported_adapters(objective, export)
        load_heads(objective, export)
    elif weights == "initial":
        if config.answers.start_from is not None:
            start_answers(built, config.answers)
        if config.initialize_from is not None:
            initialize_from(objective, config.initialize_from)
    look(built)
    dtype = _DTYPES[resolve_precision(config.precision, device.type, too_wide=objective.too_wide_for_fp16)]
    objective.to(device=device, dtype=dtype).eval()
    objective.place_frozen(device, dtype)
    return Exported(config, built.settled(device, bool), device, dtype)  # alone, whoever else computes


def _frozen_keys(path: Path) -> tuple[str, ...]:
    """How overrides begin that say where a frozen checkpoint lies here."""
    export = export_of(path)
    return tuple(f"{key}=" for key in read_manifest(export).frozen) if (export / MANIFEST).is_file() else ()


def _classes(config: RunConfig, exported: tuple[str, ...]) -> tuple[str, ...]:
    """What the export names. A run that was trained without a list ranks that of its recipe, or of its training split.

    Raises:
        ConfigError, DataError: there is no such list, or the shards of the training are gone.
    """
    if exported or config.answers.by != "rank":
        return exported
    assert config.data.train is not None, "the run was trained on something"
    try:
        return classes_of(config, open_index(config.data.train))
    except DataError as error:
        raise DataError(f"answers.by: rank takes the answers of data.train, and they cannot be read: {error}") from None


def _no_scratch_left() -> None:
    raise DataError("export: a part of the recipe is `scratch` and was not exported; train the run again")
