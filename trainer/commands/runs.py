"""`duoflow runs`: the runs that there are as a table, and what two of them differ in."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import UserError
from shards.progress import say
from trainer.columns import aligned
from trainer.commands.standing import find_run
from trainer.commands.status import Report, metrics_lines, report, runs_below
from trainer.config.resume_policy import config_diff
from trainer.config.yaml_text import format_value
from trainer.reporting.progress import render_duration

COLUMNS = ("run", "state", "step", "best", "at step", "time", "task")
_SHOWN_METRICS = ("loss", "accuracy")
"""Ends of the names of metrics that a comparison shows."""


class Pair(NamedTuple):
    """What the two runs of a comparison have in one row; None where one has nothing."""

    name: str
    first: Any
    second: Any


def list_runs(directory: Path, *, as_json: bool) -> int:
    """Print the runs of a directory.

    Raises:
        UserError: it is none.
    """
    reports = [report(run) for run in runs_below(directory)]
    if as_json:
        say(json.dumps([_document(found) for found in reports], indent=1, ensure_ascii=False))
    elif reports:
        say("\n".join(aligned([COLUMNS, *map(_row, reports)])))
    else:
        say(f"{directory}: no runs")
    return 0


def compare_runs(first: Path, second: Path, *, as_json: bool) -> int:
    """Print where two runs differ.

    Raises:
        UserError: as `compare`.
    """
    recipes, metrics = compare(first, second)
    names = (str(first), str(second))
    if as_json:
        document = {
            "runs": names,
            "recipe": [pair._asdict() for pair in recipes],
            "metrics": [pair._asdict() for pair in metrics],
        }
        say(json.dumps(document, indent=1, ensure_ascii=False))
        return 0
    differences = aligned([("recipe", *names), *_cells(recipes)]) if recipes else ["the recipes are equal"]
    say("\n".join([*differences, "", *aligned([("best validation", *names), *_cells(metrics)])]))
    return 0


def compare(first: Path, second: Path) -> tuple[list[Pair], list[Pair]]:
    """(keys in which the recipes of two runs differ, metrics of the best validation of each).

    Raises:
        UserError: one of them is no run, or was never started.
    """
    reports = [report(find_run(path)) for path in (first, second)]
    configs = []
    for found in reports:
        config = found.run.read_config()
        if config is None:
            raise UserError(f"{found.run.path}: has no config.yaml; expected the directory of a run that was started")
        configs.append(config)
    differences = [
        Pair(difference.key, _plain(difference.old), _plain(difference.new)) for difference in config_diff(*configs)
    ]
    values = [dict(_best_values(found)) for found in reports]
    names = dict.fromkeys(name for found in values for name in found)
    return differences, [Pair(name, *(found.get(name) for found in values)) for name in names]


def _best_values(found: Report) -> Iterator[tuple[str, Any]]:
    """Of the best validation; `step`, `time` and `questions/s` lead."""
    lines = list(metrics_lines(found.run))
    yield "state", found.state
    yield "step", found.step
    yield "training seconds", training_seconds(lines)
    if found.best is None:
        return
    yield "best at step", found.best.step
    best = next((line for line in lines if line.get("step") == found.best.step and found.best.metric in line), {})
    for name, value in best.items():
        if name.startswith("val/") and name.endswith(_SHOWN_METRICS) and name.count("/") == 1:
            yield name, value
    if found.best.metric not in best or not found.best.metric.endswith(_SHOWN_METRICS):
        yield found.best.metric, found.best.value


def training_seconds(lines: Iterable[Mapping[str, Any]], longest_pause: float = 600.0) -> float | None:
    """How long a run has trained, from the times of its lines of metrics; longer pauses are stops and count nothing.

    None where there are fewer than two lines.
    """
    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    steps = [later - earlier for earlier, later in pairwise(times)]
    return round(sum(step for step in steps if 0.0 <= step <= longest_pause), 1) if steps else None


def _document(found: Report) -> dict[str, Any]:
    return {
        "run": str(found.run.path),
        "state": found.state,
        "step": found.step,
        "total_steps": found.total_steps,
        "best": None if found.best is None else found.best._asdict(),
        "training_seconds": training_seconds(metrics_lines(found.run)),
        "task": _task(found),
        "message": "" if found.status is None else found.status.message,
    }


def _row(found: Report) -> tuple[str, ...]:
    seconds = training_seconds(metrics_lines(found.run))
    best = found.best
    step = "0" if found.step is None else f"{found.step:,}"
    return (
        found.run.path.name,
        found.state,
        step if found.total_steps is None else f"{step} of {found.total_steps:,}",
        "" if best is None else f"{best.metric} {best.value:.4f}",
        "" if best is None else f"{best.step:,}",
        "" if seconds is None else render_duration(seconds),
        _task(found) or "",
    )


def _task(found: Report) -> str | None:
    try:
        config = found.run.read_config()
    except UserError:  # its state says so
        return None
    return None if config is None else config.task


def _cells(pairs: Iterable[Pair]) -> Iterator[tuple[str, ...]]:
    for pair in pairs:
        yield (pair.name, *("-" if value is None else _shown(value) for value in (pair.first, pair.second)))


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else format_value(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
