"""`duoflow stop`: one signal to one rank, on whatever host, and a wait until all have saved and left."""

import signal
import time
from pathlib import Path

from launch.hosts.watch import Census, signal_processes, take_census
from launch.processes.ranks import ask_to_stop
from shards.errors import UserError
from shards.progress import say
from trainer.commands.standing import find_run, judge, say_end, settle_dead
from trainer.exit_codes import DONE, FAILED
from trainer.run_directory import RunDirectory

POLL_SECONDS = 0.2
OTHER_HOSTS_POLL_SECONDS = 2.0
KILLED_SECONDS = 15.0
"""How long processes may take to vanish after SIGKILL: those in the middle of a write to a dead disk do not."""


def stop(path: Path, *, kill: bool = False, wait_seconds: float | None = None) -> int:
    """Make a run save and leave; returns 0 when nothing of it is alive any more, 1 if something is.

    Args:
        kill: end with SIGKILL what has not left in time.
        wait_seconds: how long to wait; None is engine.timeout_seconds of the run.

    Raises:
        UserError: there is no such run, or its processes are on hosts that do not answer.
    """
    run = find_run(path)
    census = take_census(run.ranks)
    if not census.alive:
        return _nothing_to_stop(run, census)
    if wait_seconds is None:
        wait_seconds = _timeout_seconds(run)
    ask_to_stop(run.ranks)
    faults = _ask(census)
    if faults and not kill:
        raise UserError(f"{run.path}: cannot be stopped from here: {'; '.join(faults)}")
    say(f"duoflow: {run.path}: asked to stop; waiting {wait_seconds:g} s at most until it has saved", error=True)
    left = _wait(run, wait_seconds)
    killed = bool(left.alive) and kill
    if killed:
        say(
            f"duoflow: {run.path}: {len(left.alive)} process(es) did not leave within {wait_seconds:g} s: killing them "
            "with SIGKILL; the last checkpoint stays",
            error=True,
        )
        # The attendant ends by itself when its ranks have, and clears away what they leave behind.
        signal_processes(left.live_ranks or left.alive, signal.SIGKILL)
        left = _wait(run, KILLED_SECONDS)
    if left.alive:
        say(_still_there(run, left, wait_seconds, killed=killed), error=True)
        return FAILED
    status = settle_dead(run, "killed by `duoflow stop --kill`; the last checkpoint stays" if killed else None)
    assert status is not None, "find_run saw one"
    say(say_end(run, status))
    return DONE


def _nothing_to_stop(run: RunDirectory, census: Census) -> int:
    status = run.read_status()
    if judge(status, census) == "unknown":
        hosts = "; ".join(f"{host}: {fault}" for host, fault in census.unreachable)
        raise UserError(f"{run.path}: nothing of it runs here, and it cannot be looked up elsewhere ({hosts})")
    status = settle_dead(run)
    assert status is not None, "find_run saw one"
    say(f"{say_end(run, status)}; it does not run, so there is nothing to stop")
    return DONE


def _ask(census: Census) -> list[str]:
    """One rank is enough: they agree. Before any is up, the attendant ends the start, or its wait for the next one.

    Returns:
        Why nobody could be asked; empty if somebody was.
    """
    faults = []
    for process in census.alive:
        fault = signal_processes([process], signal.SIGTERM)
        if not fault:
            return []
        faults += fault
    return faults


def _wait(run: RunDirectory, seconds: float) -> Census:
    """Until nothing is alive, or the time is over; what is alive then."""
    deadline = time.monotonic() + seconds
    while True:
        # Other hosts are asked when this one is empty: each question to them is a connection.
        census = take_census(run.ranks, ask_others=False)
        if not census.alive:
            census = take_census(run.ranks)
            if not census.alive:
                return census
        if time.monotonic() > deadline:
            return take_census(run.ranks)
        time.sleep(OTHER_HOSTS_POLL_SECONDS if census.is_unknown else POLL_SECONDS)


def _still_there(run: RunDirectory, left: Census, seconds: float, *, killed: bool) -> str:
    who = ", ".join(f"{process.pid} on {process.host}" for process in left.alive)
    if killed:
        return f"duoflow: {run.path}: process {who} is there even after SIGKILL; it waits for its disk or its GPU"
    return (
        f"duoflow: {run.path}: process {who} did not leave within {seconds:g} s; wait longer (--wait SECONDS), or end "
        "it with --kill"
    )


def _timeout_seconds(run: RunDirectory) -> float:
    config = run.read_config()
    assert config is not None, "a run with a status has been started"
    return config.engine.timeout_seconds
