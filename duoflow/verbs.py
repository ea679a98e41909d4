"""What the command does with whole data sets, from Python: pack, train, score."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from duoflow.overrides import Overrides, as_overrides

if TYPE_CHECKING:
    from shards.build.build_request import OnMissing
    from shards.format.index import SplitIndex

PathLike = str | Path


class Scores(NamedTuple):
    """How a model does on a split."""

    metrics: dict[str, float]
    """By name, such as `val/accuracy`: parts of 1, and losses."""
    counts: dict[str, int]
    """Questions behind them."""
    predictions: Path | None
    """The file to hand in, where images and weights are the model's own."""
    table: Path | None = None
    """The same to read: a row for each question with its image, answer, prediction, probability and score."""


class TrainedRun(NamedTuple):
    """A run that has ended."""

    path: Path
    """Its directory, which `load` and `evaluate` take."""
    state: Literal["done", "stopped"]
    """`stopped`: a signal came, and the same call goes on."""
    step: int | None
    """Optimizer steps taken."""
    message: str


def evaluate(
    path: PathLike,
    split: str,
    *,
    images: Literal["own", "shuffled"] = "own",
    weights: Literal["trained", "initial"] = "trained",
    pipeline: Literal["direct", "pnp"] = "direct",
    overrides: Overrides = (),
) -> Scores:
    """Score a run's best weights, or an export, on a split of its recipe: `duoflow evaluate`.

    Args:
        split: `train`, `val`, `testdev`, `test` or `challenge`.
        images: `shuffled` shows each question another image: what is left without looking.
        weights: `initial` is what training began with.
        pipeline: whose answers are scored.
        overrides: such as `{"data.val": "data/other"}`.

    Raises:
        UserError: there is no such split, or what is at `path` cannot be used.
    """
    from trainer.inference.evaluate import evaluate_export

    given = {"images": images, "weights": weights, "pipeline": pipeline}
    return Scores(*evaluate_export(Path(path), split, overrides=as_overrides(overrides), **given))


def build_shards(
    *,
    format: str,
    questions: PathLike | Sequence[PathLike],
    out: PathLike,
    images: PathLike | None = None,
    regions: Sequence[PathLike] = (),
    scene_graphs: PathLike | None = None,
    annotations: Sequence[PathLike] = (),
    ocr: Sequence[PathLike] = (),
    limit: int | None = None,
    workers: int = 0,
    on_missing: "OnMissing" = "fail",
    balanced_only: bool = False,
    resize: int | None = None,
    lowercase_answers: bool = False,
) -> "SplitIndex":
    """Pack images and questions into shards: `duoflow shards build`. The same shards already there are left alone.

    Args:
        format: of the question files, such as `csv`, `jsonl` or `gqa` (docs/data.md).
        limit: the first N images alone.
        workers: processes; with more than one, call it under `if __name__ == "__main__":`.
        resize: bring the short side of images down to so many pixels.

    Returns:
        The index, with `num_images` and `counts`.

    Raises:
        UserError: a file or an image is not what it should be; nothing is left behind.
    """
    from shards.build import writer

    files = [questions] if isinstance(questions, str | Path) else questions
    return writer.build_shards(
        format=format,
        questions=[Path(file) for file in files],
        out=Path(out),
        images=None if images is None else Path(images),
        regions=[Path(file) for file in regions],
        scene_graphs=None if scene_graphs is None else Path(scene_graphs),
        annotations=[Path(file) for file in annotations],
        ocr=[Path(file) for file in ocr],
        limit=limit,
        workers=workers,
        on_missing=on_missing,
        balanced_only=balanced_only,
        resize=resize,
        lowercase_answers=lowercase_answers,
    )


def train(recipe: PathLike, overrides: Overrides = (), *, fresh: bool = False) -> TrainedRun:
    """Train a recipe to its end on this machine, or go on with the run of that name: `duoflow train`.

    The ranks are processes of their own, which write to this process's output.

    Args:
        overrides: such as `{"optim.lr": 3e-5}`.
        fresh: set an existing run of that name aside and start over.

    Raises:
        UserError: the recipe or its data cannot be used; nothing was started.
        RuntimeError: the ranks failed; the message is that of the run's status.
    """
    from trainer.commands.start import start_training
    from trainer.config import load_config
    from trainer.run_directory import RunDirectory

    given = as_overrides(overrides)
    run = RunDirectory.of(load_config(Path(recipe), given))
    start_training(Path(recipe), given, fresh=fresh)
    status = run.read_status()
    if status is None or status.state not in ("done", "stopped"):
        raise RuntimeError(f"{run.path}: {'left no status' if status is None else status.message}; see {run.logs}")
    return TrainedRun(run.path, status.state, status.global_step, status.message)
