"""`duoflow evaluate`: a split through the exported model of a run, in a process of its own."""

from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging as transformers_logging

from shards.atomic import write_atomically
from shards.errors import ConfigError, DataError
from shards.progress import Progress
from trainer.build import assemble_model, evaluation_loader, open_split
from trainer.config import RunConfig
from trainer.deepspeed_config import resolve_precision
from trainer.distributed import World, device_type
from trainer.export import exported_model_config, load_exported_adapters, load_fusion
from trainer.run_directory import RunDirectory
from trainer.validate import Evaluation, evaluate, gather_predictions

Images = Literal["own", "shuffled"]
Weights = Literal["trained", "initial"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def evaluate_run(
    path: Path, split: str, *, images: Images = "own", weights: Weights = "trained"
) -> tuple[dict[str, float], dict[str, int]]:
    """Evaluate the export of a run directory on a split of its recipe.

    Own images and trained weights, the default, also write `predictions/SPLIT.json` in GQA's submission format.

    Args:
        images: `shuffled` shows every question the image of another sample: what is left without looking.
        weights: `initial` leaves the fusion encoder as the seed made it: where training began.

    Returns:
        Metrics (parts of 1) and the questions behind them; both empty of accuracies where the split has no answers.

    Raises:
        ConfigError, DataError: there is no such run or split, or the export does not load.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    directory = RunDirectory(path)
    config = directory.read_config()
    if config is None:
        raise ConfigError(f"{path}: no run in it; expected a run directory such as runs/NAME, with a config.yaml")
    evaluation = _evaluate(config, directory, split, images=images, weights=weights)
    if images == "own" and weights == "trained":
        rows = gather_predictions(evaluation.predictions, World())
        write_atomically(directory.predictions(split), rows)
    return evaluation.metrics, evaluation.counts


def _evaluate(
    config: RunConfig, directory: RunDirectory, split: str, *, images: Images, weights: Weights
) -> Evaluation:
    device = torch.device(device_type())
    world = World(device=device)
    opened = open_split(config, split)
    model = exported_model_config(config.model, directory.export)
    built = assemble_model(config, model=model, scratch_tokenizer=_no_scratch_left)
    objective = built.objective
    if weights == "trained":
        load_fusion(objective, directory.export)
        load_exported_adapters(objective, directory.export)
    dtype = _DTYPES[resolve_precision(config.precision, device.type, t5_is_trained=objective.trains_t5)]
    objective.to(device=device, dtype=dtype).eval()
    objective.place_frozen(device, dtype)
    batches, loader = evaluation_loader(config, opened, built, world, shuffle_images=images == "shuffled")
    with Progress(f"evaluating {split}", len(batches.order.visits), "images") as progress:
        evaluation = evaluate(
            objective, built, batches, loader, world, losses=config.losses, prefix=split, progress=progress.advance
        )
    assert evaluation is not None, "nobody asks this evaluation to stop"
    return evaluation


def _no_scratch_left() -> None:
    raise DataError("export: a part of the recipe is `scratch` and was not exported; train the run again")
