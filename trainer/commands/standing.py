"""How a run stands: what its status says, held against which of its processes are alive."""

from pathlib import Path
from typing import Literal

from launch.hosts.deaths import describe_deaths
from launch.hosts.watch import Census, take_census
from launch.processes.ranks import this_process
from shards.errors import UserError
from trainer.exit_codes import FAILED
from trainer.run_directory import RunDirectory, Status

Standing = Literal["running", "starting", "orphaned", "dead", "unknown", "done", "stopped", "failed", "new"]
"""`dead`: the status says running and no process is left. `orphaned`: ranks train, their starter was killed.
`unknown`: on a host that does not answer. `new`: never started."""


def find_run(path: Path) -> RunDirectory:
    """The run that lies in a directory.

    Raises:
        UserError: no run does.
    """
    run = RunDirectory(path)
    if not run.status.is_file():
        found = "has no status.json" if path.is_dir() else "is no directory"
        raise UserError(f"{path}: {found}; expected the directory of a run, such as runs/NAME (see `duoflow status`)")
    return run


def judge(status: Status | None, census: Census) -> Standing:
    """One word for how a run stands."""
    if status is None:
        return "new"
    if status.state != "running":
        return status.state
    if census.has_orphans:
        return "orphaned"
    if census.live_ranks:
        return "running"
    if census.alive:
        return "starting"
    return "unknown" if census.is_unknown else "dead"


def settle_dead(run: RunDirectory, reason: str | None = None) -> Status | None:
    """`settle`, unless another process settles this run or is just starting it; what the status says then."""
    run.ranks.mkdir(exist_ok=True)
    try:
        with run.lock():
            return settle(run, reason)
    except UserError:  # the lock is another's
        return run.read_status()


def settle(run: RunDirectory, reason: str | None = None) -> Status | None:
    """Write how a run ended, if its processes are gone without a word; what its status says then.

    Whoever calls it holds the run's lock.

    Args:
        reason: why they are gone, where the caller knows.
    """
    if judge(run.read_status(), take_census(run.ranks).without(this_process())) == "dead":
        deaths = describe_deaths(run.ranks) or "its processes ended without a word"
        message = reason or f"{deaths}; see {run.logs}, and run the same command again"
        run.change_status("failed", exit_code=FAILED, message=message)
    return run.read_status()


def say_end(run: RunDirectory, status: Status) -> str:
    """One line: `runs/NAME: stopped at step 120 (exit code 75): stopped by SIGTERM; ...`."""
    step = "before the first step" if status.global_step is None else f"at step {status.global_step:,}"
    why = f": {status.message}" if status.message else ""
    return f"{run.path}: {status.state} {step} (exit code {exit_code(status)}){why}"


def exit_code(status: Status) -> int:
    return FAILED if status.exit_code is None else status.exit_code
