"""What a run leaves, as a table at its end: the best validation, and where every file is."""

from collections.abc import Iterator
from pathlib import Path

from trainer.columns import aligned
from trainer.config.exported import read_export
from trainer.training.state import Run, TrainState


def summary(run: Run, state: TrainState) -> list[str]:
    """Its lines; call it on rank 0, behind the export."""
    directory, exported = run.directory, read_export(run.directory.export)
    chosen = "no validation was finite" if state.best_step is None else "its validation was the best"
    if run.validation is None:
        chosen = "the last"
    rows = [("exported", f"step {exported['step']:,} of {state.global_step:,}: {chosen}")]
    rows += [(name, f"{value:.4f}") for name, value in _shown(run, exported["metrics"])]
    files = [
        ("weights", directory.export),
        ("predictions", directory.predictions("val")),
        ("metrics", directory.metrics),
    ]
    if run.config.logging.tensorboard:
        files.append(("curves", directory.tensorboard))
    rows += [(name, _named(name, path)) for name, path in files if path.exists()]
    rows.append(
        ("next", f"duoflow evaluate {directory.path} --split val; duoflow report {directory.path} --out F.html")
    )
    return aligned(rows)


def _shown(run: Run, metrics: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Of the validation that decided: its own metric, those of the task's headline, and the losses."""
    wanted = [run.config.early_stopping.metric, *(f"val/{name}" for _, name in run.task.headline)]
    losses = sorted(name for name in metrics if name.startswith("val/") and name.endswith("loss"))
    for name in dict.fromkeys([*wanted, *losses]):
        if name in metrics:
            yield name, metrics[name]


def _named(name: str, path: Path) -> str:
    return f"tensorboard --logdir {path.parent}" if name == "curves" else f"{path}"
