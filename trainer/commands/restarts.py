"""Starts a run again after a fault: what may be started again, after how long a wait, and the loop around a launch."""

import json
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from launch.hosts.cluster import Cluster
from launch.plan.launch_plan import Node
from launch.processes.local import wait_for_signal
from launch.processes.ranks import is_asked_to_stop
from shards.errors import UserError
from shards.progress import say
from trainer.config import RunConfig
from trainer.config.schema import check_world_size
from trainer.exit_codes import FAILED, STOPPED
from trainer.run_directory import RunDirectory, Status

FIRST_WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 120.0
"""Between two starts that led nowhere the wait doubles, up to this: a disk or a switch may take minutes to return."""


class Ended(NamedTuple):
    """How a start ended."""

    code: int
    gained: bool
    """Whether the run came further than it was."""
    final: bool = False
    """Whether somebody wanted it to end, or its ranks go on without their launcher."""


def seconds_until_restart(history: Sequence[Ended], restarts: int) -> float | None:
    """How long to wait before the next start, None to leave it: pure arithmetic over all starts so far, oldest first.

    A user's mistake, a stop and a finished run are never started again; only faults (exit code 1) are.

    Args:
        restarts: how often the run may be started again in all.
    """
    last = history[-1]
    if last.code != FAILED or last.final or len(history) > restarts:
        return None
    fruitless = 0
    for ended in reversed(history):
        if ended.gained:
            break
        fruitless += 1
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** max(0, fruitless - 1))


def nodes_for_restart(
    nodes: Sequence[Node], answering: Sequence[bool], min_nodes: int, fits: Callable[[Sequence[Node]], bool]
) -> tuple[Node, ...] | None:
    """Those that a run goes on with: the most of the nodes that answer that it can be shared between, in their order.

    Args:
        answering: for each node, whether it can be reached.
        min_nodes: with fewer it does not go on.
        fits: whether the run can be shared between these nodes: the lanes and the micro-batch have to divide.

    Returns:
        None if there are too few.
    """
    there = [node for node, answers in zip(nodes, answering, strict=True) if answers]
    for number in range(len(there), max(1, min_nodes) - 1, -1):
        if fits(there[:number]):
            return tuple(there[:number])
    return None


def nodes_that_answer(
    nodes: Sequence[Node], cluster_of: Callable[[Sequence[Node]], Cluster], min_nodes: int, config: RunConfig
) -> tuple[Node, ...]:
    """`nodes_for_restart` of what the hosts answer now, and a line about those that are left out.

    Raises:
        UserError: too few answer, or the run cannot be shared between those that do.
    """
    cluster = cluster_of(nodes)
    answers, faults = cluster.hosts.ask_each("report", cluster.run)

    def fits(some: Sequence[Node]) -> bool:
        try:
            check_world_size(config, len(some) * some[0].slots)
        except UserError:
            return False
        return True

    chosen = nodes_for_restart(nodes, [node.name in answers for node in nodes], min_nodes, fits)
    if chosen is None:
        why = "; ".join(map(str, faults.values())) or "the lanes cannot be shared between so many"
        raise UserError(f"{len(answers)} of {len(nodes)} hosts answer, and --min-nodes is {min_nodes}: {why}")
    left_out = [node.name for node in nodes if node not in chosen]
    if left_out:
        say(f"going on with {len(chosen)} of {len(nodes)} hosts, without {', '.join(left_out)}", error=True)
    return chosen


def keep_training(run: RunDirectory, launch: Callable[[], int], restarts: int) -> int:
    """Launch a run, and again after each fault, until it ends otherwise or has been started again `restarts` times.

    Args:
        launch: runs it once to its end, settles its status and returns the exit code.

    Returns:
        The exit code of the last start.

    Raises:
        UserError: the first start is refused. Later ones count as faults: a host that is gone may come back.
    """
    history: list[Ended] = []
    while True:
        step = _step(run.read_status())
        try:
            code = launch()
        except UserError as error:
            if not history:
                raise
            code = FAILED
            run.change_status("failed", exit_code=code, message=str(error))
            say(f"duoflow: {run.path}: {error}", error=True)
        status = run.read_status()
        goes_on = status is not None and status.state == "running"
        history.append(Ended(code, _step(status) > step, goes_on or is_asked_to_stop(run.ranks)))
        wait = seconds_until_restart(history, restarts)
        if wait is None:
            return code
        reason = status.message if status is not None else f"exit code {code}"
        again = f"starting again in {wait:g} s (restart {len(history)} of {restarts})"
        run.change_status("running", message=f"{again}, after: {reason}")
        _note(run, code, status, wait)
        say(f"duoflow: {run.path}: {again}", error=True)
        stopped_by = wait_for_signal(wait, lambda: is_asked_to_stop(run.ranks))
        if stopped_by is not None:
            return _leave(run, stopped_by, reason)


def _leave(run: RunDirectory, stopped_by: str, reason: str) -> int:
    message = f"{stopped_by} while it waited to start again; run the same command again (it had ended with: {reason})"
    run.change_status("stopped", exit_code=STOPPED, message=message)
    say(f"duoflow: {run.path}: {message}", error=True)
    return STOPPED


def _note(run: RunDirectory, code: int, status: Status | None, wait: float) -> None:
    message, step = ("", None) if status is None else (status.message, status.global_step)
    line = {"time": round(time.time(), 3), "exit_code": code, "step": step, "message": message, "wait_seconds": wait}
    with run.restarts.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _step(status: Status | None) -> int:
    return 0 if status is None or status.global_step is None else status.global_step
