"""`duoflow evaluate`: a split through the exported model of a run, in a process of its own."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from shards.atomic import check_writable, write_atomically
from shards.errors import ConfigError, UserError
from shards.format.index import open_index
from shards.progress import Progress, say
from shards.read.micro_batches import Split
from shards.tasks import TASKS
from trainer.build import AnyBuilt, build_pnp, evaluation_loader, open_split
from trainer.config import RunConfig
from trainer.engine.distributed import World
from trainer.export.read import Pipeline, Weights, load_exported, open_keys, read_run
from trainer.export.run_arguments import other_than_fusion
from trainer.features.use import Streams, cacheable_streams, cached_sight
from trainer.inference.table import as_csv, predicted_rows
from trainer.run_directory import RunDirectory
from trainer.tasks import Task, task_named
from trainer.training.baselines import baselines
from trainer.training.preflight import check_format
from trainer.training.validate import evaluate, evaluate_pnp, gather_predictions

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


def evaluate_run(
    path: Path,
    split: str,
    *,
    images: Images = "own",
    weights: Weights = "trained",
    pipeline: Pipeline = "direct",
    overrides: Sequence[str] = (),
) -> tuple[dict[str, float], dict[str, int]]:
    """The metrics and counts of `evaluate_export`."""
    found = evaluate_export(path, split, images=images, weights=weights, pipeline=pipeline, overrides=overrides)
    return found.metrics, found.counts


def evaluate_export(
    path: Path,
    split: str,
    *,
    images: Images = "own",
    weights: Weights = "trained",
    pipeline: Pipeline = "direct",
    overrides: Sequence[str] = (),
) -> Evaluated:
    """Evaluate the export of a run, or an export, on a split of its recipe.

    Own images and trained weights, the default, also write the answers in the task's submission format:
    `predictions/SPLIT.json`, and `answers/SPLIT.csv` to be read; `SPLIT.pnp.json`, or `SPLIT.rank.json` where
    `answers.by` is not that of the run.

    Args:
        images: `shuffled` shows every question the image of another sample: what is left without looking.
        weights: `initial` leaves the fusion encoder as the seed made it: where training began.
        pipeline: whose answers are scored.
        overrides: `key=value` where a run leaves a choice (`trainer.export.read.open_keys`).

    Raises:
        ConfigError, DataError: there is no such run or split, or the export does not load.
    """
    pnp = pipeline == "pnp"
    if pnp and (other := other_than_fusion(read_run(path))) is not None:
        raise ConfigError(f"--pipeline pnp: needs a trained fusion, and {path} is {other}; leave it out")
    config = read_run(path, overrides, open_keys=open_keys(looks=pnp, pnp=pnp, chooses=not pnp))
    if images == "own" and weights == "trained":
        _check_predictions(RunDirectory(path).predictions(split))
    task, opened = task_named(config.task), open_split(config, split)
    check_format(config.task, opened.index, f"data.{split}", opened.directory)
    streams: list[Streams | None] = []

    def look(built: AnyBuilt) -> None:
        # PNP-VQA's captioner looks at the images themselves.
        streams.append(None if pnp else cacheable_streams(config, built, [split], World()))

    exported = load_exported(path, config, weights=weights, look=look)
    world = World(device=exported.device)
    features = cached_sight(
        config, split, opened, streams[0], exported.built, world, tell=lambda line: say(line, error=True)
    )
    batches, loader = evaluation_loader(
        config, opened, exported.built, world, shuffle_images=images == "shuffled", features=features
    )
    with Progress(f"evaluating {split}", len(batches.order.visits), "visits") as progress:
        common = {"task": task, "prefix": split, "detailed": True, "progress": progress.advance}
        if pnp:
            evaluation = evaluate_pnp(build_pnp(*exported), batches, loader, world, **common)
        else:
            objective, losses = exported.built.objective, config.losses
            common["probabilities"] = images == "own" and weights == "trained"
            evaluation = evaluate(objective, exported.built, batches, loader, world, losses=losses, **common)
    assert evaluation is not None, "nobody asks this evaluation to stop"
    written = table = None
    if images == "own" and weights == "trained":
        by, usual = (pipeline, "direct") if pnp else (_answers_by(config), _answers_by(read_run(path)))
        name = split if by == usual else f"{split}.{by}"
        submission = gather_predictions(evaluation.predictions, task, World())
        written = RunDirectory(path).predictions(name, submission.ending)
        write_atomically(written, submission.pieces)
        rows = predicted_rows(opened, evaluation.predictions, evaluation.probabilities, task)
        if (first := next(rows, None)) is not None:
            table = RunDirectory(path).predictions_table(name)
            write_atomically(table, as_csv(chain([first], rows)))
    ceiling = _answer_ceiling(config, opened, split)
    metrics = {**evaluation.metrics, **ceiling, **_baselines(config, opened, task, split)}
    return Evaluated(metrics, evaluation.counts, written, table)


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
