"""`duoflow status`: how runs stand, as a table, or everything about one of them."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from launch.hosts.remote_hosts import MAX_AT_ONCE
from launch.hosts.watch import Census, take_census
from shards.errors import UserError
from shards.progress import say
from trainer.columns import aligned
from trainer.commands.attach import log_of
from trainer.commands.standing import judge
from trainer.config import RunConfig
from trainer.reporting.progress import render_duration, render_rate
from trainer.run_directory import RunDirectory, Status

COLUMNS = ("run", "state", "step", "epoch", "best", "questions/s", "left", "hosts")


class Best(NamedTuple):
    metric: str
    value: float
    step: int


class Report(NamedTuple):
    """What is known of a run; None is not known."""

    run: RunDirectory
    state: str
    status: Status | None = None
    census: Census | None = None
    total_steps: int | None = None
    epoch: float | None = None
    epochs: int | None = None
    best: Best | None = None
    questions_per_second: float | None = None
    left_seconds: float | None = None
    last_line: float | None = None
    """Seconds since 1970 of the last line of metrics."""
    restarts: int = 0

    bound_by: str | None = None
    """What takes the time of its steps: docs/performance.md."""

    recorded_step: int | None = None
    """Of the last line of metrics; the status follows at checkpoints alone."""

    @property
    def step(self) -> int | None:
        """Optimizer steps taken, as far as anybody knows."""
        saved = None if self.status is None else self.status.global_step
        return max((step for step in (saved, self.recorded_step) if step is not None), default=None)

    @property
    def hosts(self) -> list[str]:
        if self.census is None:
            return []
        return sorted({view.record.process.host for view in self.census.ranks})


def status(path: Path, *, as_json: bool) -> int:
    """Print how a run stands, or all runs of a directory.

    Raises:
        UserError: there is neither.
    """
    if (path / "status.json").is_file() or (path / "config.yaml").is_file():
        found = report(RunDirectory(path))
        say(json.dumps(document(found), indent=1, ensure_ascii=False) if as_json else "\n".join(details(found)))
        return 0
    runs = runs_below(path)
    with ThreadPoolExecutor(MAX_AT_ONCE) as pool:  # what takes time is other hosts
        reports = list(pool.map(report, runs))
    if as_json:
        say(json.dumps([document(found) for found in reports], indent=1, ensure_ascii=False))
    else:
        say("\n".join(table(reports)) if reports else f"{path}: no runs")
    return 0


def runs_below(path: Path) -> list[RunDirectory]:
    """The runs of a directory by name; those set aside (NAME.1) among them.

    Raises:
        UserError: it is no directory.
    """
    if not path.is_dir():
        raise UserError(f"{path}: is no directory; expected a run, or the directory in which runs lie (run.directory)")
    return [RunDirectory(child) for child in sorted(path.iterdir()) if (child / "status.json").is_file()]


def report(run: RunDirectory) -> Report:
    """Look at a run; what is damaged is said in the place of its state."""
    try:
        status, config = run.read_status(), run.read_config()
    except UserError as error:
        return Report(run, f"damaged: {error}")
    census = take_census(run.ranks)
    state = judge(status, census)
    lines = list(metrics_lines(run))
    speed = next((line for line in reversed(lines) if "progress/epoch" in line), {})
    runs_now = state in ("running", "orphaned", "unknown")
    return Report(
        run,
        state,
        status,
        census,
        None if config is None else total_steps(config, speed),
        _number(speed.get("progress/epoch")),
        None if config is None else config.limits.epochs,
        None if config is None else best(config, lines),
        _number(speed.get("speed/questions_per_second")) if runs_now else None,
        _number(speed.get("speed/left_seconds")) if runs_now else None,
        _number(lines[-1].get("time")) if lines else None,
        len(run.restarts.read_text(encoding="utf-8").splitlines()) if run.restarts.is_file() else 0,
        speed.get("speed/bound_by") if runs_now else None,
        lines[-1].get("step") if lines else None,
    )


def total_steps(config: RunConfig, line: dict[str, Any]) -> int | None:
    """Optimizer steps of the whole run, from a line of metrics that says how many make an epoch."""
    step, epoch = _number(line.get("step")), _number(line.get("progress/epoch"))
    if not step or not epoch:
        return None
    total = round(step / epoch) * config.limits.epochs
    return total if config.limits.max_steps is None else min(total, config.limits.max_steps)


def best(config: RunConfig, lines: Sequence[dict[str, Any]]) -> Best | None:
    """The best value so far of the metric that decides; the earlier of two that are equal."""
    metric, sign = config.early_stopping.metric, 1 if config.early_stopping.mode == "max" else -1
    found = [(value, line["step"]) for line in lines if (value := _number(line.get(metric))) is not None]
    if not found:
        return None
    value, step = max(found, key=lambda entry: (sign * entry[0], -entry[1]))
    return Best(metric, value, step)


def document(found: Report) -> dict[str, Any]:
    """Everything as plain JSON values; numbers in the units of their names."""
    census = found.census
    values: dict[str, Any] = {
        "run": str(found.run.path),
        "state": found.state,
        "step": found.step,
        "total_steps": found.total_steps,
        "epoch": found.epoch,
        "epochs": found.epochs,
        "best": None if found.best is None else found.best._asdict(),
        "questions_per_second": found.questions_per_second,
        "left_seconds": found.left_seconds,
        "bound_by": found.bound_by,
        "seconds_since_last_line": _age(found),
        "exit_code": None if found.status is None else found.status.exit_code,
        "message": "" if found.status is None else found.status.message,
        "restarts": found.restarts,
        "hosts": found.hosts,
    }
    if census is None:
        return values
    attendant = census.attendant
    return values | {
        "attendant": None if attendant is None else {**attendant._asdict(), "life": census.attendant_life},
        "ranks": [
            {
                "rank": view.record.rank,
                "host": view.record.process.host,
                "pid": view.record.process.pid,
                "life": view.life,
                "exit_code": view.record.exit_code,
            }
            for view in census.ranks
        ],
        "unreachable": dict(census.unreachable),
        "damaged": list(census.damaged),
    }


def table(reports: Sequence[Report]) -> list[str]:
    """A line for each run, under a line of titles."""
    return aligned([COLUMNS, *(_row(found) for found in reports)])


def details(found: Report) -> Iterator[str]:
    """Lines about one run."""
    rows = [("state", found.state), ("step", _of(found)), ("epoch", _epoch(found))]
    if found.best is not None:
        rows.append(("best", f"{found.best.metric} {found.best.value:.4f} at step {found.best.step:,}"))
    if found.questions_per_second is not None:
        bound = "" if found.bound_by is None else f", bound by {found.bound_by}"
        rows.append(("speed", f"{render_rate(found.questions_per_second)} questions/s{bound}, {_left(found)} left"))
    age = _age(found)
    if age is not None:
        rows.append(("metrics", f"last line {render_duration(age)} ago"))
    if found.status is not None and found.status.exit_code is not None:
        rows.append(("exit code", str(found.status.exit_code)))
    if found.status is not None and found.status.message:
        rows.append(("message", found.status.message))
    if found.restarts:
        rows.append(("restarts", f"{found.restarts}, see {found.run.restarts}"))
    if found.census is not None:
        rows += _process_rows(found.run, found.census)
    width = max(len(name) for name, _ in rows)
    yield str(found.run.path)
    yield from (f"  {name:<{width}}  {value}" for name, value in rows)


def _process_rows(run: RunDirectory, census: Census) -> Iterator[tuple[str, str]]:
    yield "log", str(log_of(run))
    if census.attendant is not None:
        yield "attendant", f"process {census.attendant.pid} on {census.attendant.host}, {census.attendant_life}"
    for view in census.ranks:
        process, code = view.record.process, view.record.exit_code
        how = view.life if code is None else f"left with exit code {code}"
        yield f"rank {view.record.rank}", f"process {process.pid} on {process.host}, {how}"
    for name in census.damaged:
        yield name, f"says nothing (empty or damaged); the next start removes it from {run.ranks}"
    for host, fault in census.unreachable:
        yield host, f"does not answer: {fault}"


def _row(found: Report) -> tuple[str, ...]:
    best_value = "" if found.best is None else f"{found.best.metric} {found.best.value:.4f}"
    rate = "" if found.questions_per_second is None else render_rate(found.questions_per_second)
    hosts = found.hosts[:3] + (["..."] if len(found.hosts) > 3 else [])
    left = "" if found.left_seconds is None else _left(found)
    return (found.run.path.name, found.state, _of(found), _epoch(found), best_value, rate, left, ",".join(hosts))


def _of(found: Report) -> str:
    step = "0" if found.step is None else f"{found.step:,}"
    return step if found.total_steps is None else f"{step} of {found.total_steps:,}"


def _epoch(found: Report) -> str:
    if found.epoch is None:
        return ""
    return f"{found.epoch:.4g}" if found.epochs is None else f"{found.epoch:.4g} of {found.epochs}"


def _left(found: Report) -> str:
    return "unknown" if found.left_seconds is None else render_duration(found.left_seconds)


def _age(found: Report) -> float | None:
    return None if found.last_line is None else round(max(0.0, time.time() - found.last_line), 1)


def metrics_lines(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl; half a line, which is being written or was cut off by a crash, is passed over."""
    if not run.metrics.is_file():
        return
    for line in run.metrics.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            yield values


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
