"""`duoflow evaluate`: a split through the exported model of a run, on one rank or on many."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from shards.atomic import check_writable, write_atomically
from shards.errors import ConfigError, UserError
from shards.format.index import open_index
from shards.progress import Progress, say
from shards.read.micro_batches import Split
from shards.tasks import TASKS
from trainer.build import build_pnp, evaluation_loader, open_split
from trainer.config import RunConfig
from trainer.engine.distributed import World, device_type
from trainer.engine.waiting import StoppedError
from trainer.export.read import RANKS, Pipeline, Weights, load_exported, open_keys, read_run
from trainer.export.run_arguments import other_than_fusion
from trainer.features.use import Streams, cached_sight, streams_of, wants_caches
from trainer.inference.table import as_csv, predicted_rows
from trainer.run_directory import RunDirectory
from trainer.scoring.predictions import Predictions, gather
from trainer.tasks import Task, task_named
from trainer.training.baselines import baselines
from trainer.training.preflight import check_format
from trainer.training.validate import evaluate, evaluate_pnp

Images = Literal["own", "shuffled"]


class Evaluated(NamedTuple):
    """How an export does on a split."""

    metrics: dict[str, float]
    """Parts of 1, and losses; empty of accuracies where the split has no answers."""
    counts: dict[str, int]
    """The questions behind them."""
    predictions: Path | None
    """The file to hand in that was written, if one was."""
    table: Path | None = None
    """The same to read, with image, question, answer, probability and score; where predictions are texts."""


def evaluate_export(
    path: Path,
    split: str,
    *,
    images: Images = "own",
    weights: Weights = "trained",
    pipeline: Pipeline = "direct",
    overrides: Sequence[str] = (),
    world: World | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluated:
    """Evaluate the export of a run, or an export, on a split of its recipe; every rank must call this.

    Own images and trained weights, the default, also write the answers in the task's submission format:
    `predictions/SPLIT.json`, and `answers/SPLIT.csv` to be read; `SPLIT.pnp.json`, or `SPLIT.rank.json` where
    `answers.by` is not that of the run.

    Args:
        images: `shuffled` shows every question the image of another sample: what is left without looking.
        weights: `initial` leaves the fusion encoder as the seed made it: where training began.
        pipeline: whose answers are scored.
        overrides: `key=value` where a run leaves a choice (`trainer.export.read.open_keys`).
        world: the ranks that share the questions; None is this process alone.
        stopped: asked after every micro-batch.

    Returns:
        On rank 0, which writes the files; on others only the metrics and counts that belong to all.

    Raises:
        ConfigError, DataError: there is no such run or split, or the export does not load; on all ranks, if on one.
        StoppedError: on all ranks, if `stopped` says so on one.
    """
    world = world or World(device=torch.device(device_type()))
    pnp, is_answer = pipeline == "pnp", images == "own" and weights == "trained"
    leads = world.rank == 0
    config = evaluated_config(path, pipeline, overrides)
    if is_answer:
        world.agree_on(lambda: _check_predictions(RunDirectory(path).predictions(split)) if leads else None)
    task, opened = task_named(config.task), open_split(config, split)
    check_format(config.task, opened.index, f"data.{split}", opened.directory)
    # PNP-VQA's captioner looks at the images themselves.
    cached = not pnp and wants_caches(config, [split], world)
    streams: list[Streams | None] = [None]
    exported = world.agree_on(
        lambda: load_exported(
            path,
            config,
            weights=weights,
            device=world.device,
            look=lambda built: streams.append(streams_of(config, built) if cached else None),
        )
    )
    features = cached_sight(
        config,
        split,
        opened,
        streams[-1],
        exported.built,
        world,
        tell=lambda line: say(line, error=True) if leads else None,
    )
    batches, loader = evaluation_loader(
        config, opened, exported.built, world, shuffle_images=images == "shuffled", features=features
    )
    own_visits = -(-len(batches.order.visits) // world.world_size)
    with Progress(f"evaluating {split}", own_visits, "visits", show=leads) as progress:
        common = {"task": task, "prefix": split, "detailed": True, "progress": progress.advance}
        common["stop_requested"] = stopped
        if pnp:
            evaluation = evaluate_pnp(build_pnp(*exported), batches, loader, world, **common)
        else:
            objective, losses = exported.built.objective, config.losses
            common["probabilities"] = is_answer
            evaluation = evaluate(objective, exported.built, batches, loader, world, losses=losses, **common)
    if evaluation is None:
        raise StoppedError("stopped")
    found = Evaluated(evaluation.metrics, evaluation.counts, None)
    said = gather(evaluation.predictions, world) if is_answer else None
    likely = gather(evaluation.probabilities, world) if is_answer else None
    if said is not None and likely is not None:
        by, usual = (pipeline, "direct") if pnp else (_answers_by(config), _answers_by(read_run(path)))
        name = split if by == usual else f"{split}.{by}"
        written, table = _write(RunDirectory(path), name, opened, task, said, likely)
        found = found._replace(predictions=written, table=table)
    if not leads:
        return found
    beside = {**_answer_ceiling(config, opened, split), **_baselines(config, opened, task, split)}
    return found._replace(metrics={**found.metrics, **beside})


def evaluated_config(path: Path, pipeline: Pipeline, overrides: Sequence[str]) -> RunConfig:
    """The recipe of a run or an export, for an evaluation.

    Raises:
        ConfigError: there is none, or an override is not open.
    """
    pnp = pipeline == "pnp"
    if pnp and (other := other_than_fusion(read_run(path))) is not None:
        raise ConfigError(f"--pipeline pnp: needs a trained fusion, and {path} is {other}; leave it out")
    return read_run(path, overrides, open_keys=(*open_keys(looks=pnp, pnp=pnp, chooses=not pnp), *RANKS))


def _write(
    run: RunDirectory, name: str, opened: Split, task: Task, said: Predictions, likely: Predictions
) -> tuple[Path, Path | None]:
    """The file to hand in, and the table to read where predictions are texts."""
    submission = task.dump(said)
    written, table = run.predictions(name, submission.ending), None
    write_atomically(written, submission.pieces)
    rows = predicted_rows(opened, said, likely, task)
    if (first := next(rows, None)) is not None:
        table = run.predictions_table(name)
        write_atomically(table, as_csv(chain([first], rows)))
    return written, table


def _baselines(config: RunConfig, opened: Split, task: Task, split: str) -> dict[str, float]:
    """What the most frequent answer and the questions alone give, where the training questions are at hand."""
    if config.data.train is None or config.data.limit is not None:
        return {}
    try:
        return baselines(open_split(config, "train"), opened, opened.visits.num_questions, task, split)
    except UserError:
        return {}  # the shards of training need not be where a model is evaluated


def _check_predictions(file: Path) -> None:
    """An export may lie where nobody may write: that is said before anything is computed."""
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be made: {error.strerror}; copy the export to a place that you can write to"
        ) from None
    check_writable("predictions", file)


def _answers_by(config: RunConfig) -> str:
    """Whose answers a recipe takes: its word, or the first that its losses train."""
    return config.answers.by or ("generate" if config.losses.answer > 0 else "classify")


def _answer_ceiling(config: RunConfig, opened: Split, split: str) -> dict[str, float]:
    """`SPLIT/answer_ceiling`: the part of its questions whose answer occurs in training at all, from the indexes."""
    total = sum(opened.index.answers.values())
    if (
        TASKS[config.task].classes is not None
        or config.model.retrieval is not None
        or config.data.train is None
        or config.data.limit is not None
        or not total
    ):
        return {}
    try:
        known = open_index(config.data.train).answers
    except UserError:
        return {}  # the shards of training need not be where a model is evaluated
    return {f"{split}/answer_ceiling": sum(n for answer, n in opened.index.answers.items() if answer in known) / total}
