"""Ranks that ended without a word: which, on what host, by which signal, and whether memory was the cause."""

import os
import signal
import socket
from pathlib import Path

from launch.hosts.remote_hosts import kernel_log_of
from launch.hosts.watch import take_census
from launch.processes.memory import cause_of_kill, kernel_log
from launch.processes.ranks import RankRecord


def describe_deaths(directory: Path, returncode: int | None = None) -> str | None:
    """One line about the ranks that were killed or whose host is lost; None if every recorded rank has left a last
    word, or still runs.

    Args:
        directory: where the ranks leave their records.
        returncode: what the launcher returned; None if nobody has seen it.
    """
    census = take_census(directory)
    silent = [view.record for view in census.ranks if view.record.exit_code is None and view.life == "gone"]
    lost = dict(census.unreachable)
    number = signal_of(returncode)
    ends = [(record.process.host, record) for record in silent]
    logs = {host: _kernel_log(host) for host, _ in ends} if number in (None, signal.SIGKILL) else {}
    said = [_describe(record, number, logs.get(host, [])) for host, record in ends]
    for host in sorted(lost):
        ranks = ", ".join(str(view.record.rank) for view in census.ranks if view.record.process.host == host)
        said.append(f"{host}, the host of rank {ranks}, does not answer ({lost[host]})")
    return "; ".join(said) or None


def signal_of(returncode: int | None) -> signal.Signals | None:
    """The signal behind an exit code: -9 of a process that we waited for, 137 of a shell, 247 of DeepSpeed's launcher
    (-9 in eight bits)."""
    if returncode is None:
        return None
    for number in (-returncode, returncode - 128, 256 - returncode):
        if number in _FATAL:
            return signal.Signals(number)
    return None


_FATAL = frozenset({signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
"""Those that leave no last word; a stop signal does."""


_OF_NCCL = (
    "; on a GPU that is how NCCL ends a process whose collective has failed, or has waited for longer than "
    "engine.timeout_seconds for a rank that is lost or hangs: the logs of the others say where they were"
)


def _describe(record: RankRecord, number: signal.Signals | None, log: list[str]) -> str:
    process = record.process
    who = f"rank {record.rank} on {process.host} (process {process.pid})"
    if number is not None and number != signal.SIGKILL:
        hint = _OF_NCCL if number == signal.SIGABRT else ""
        return f"{who} was ended by signal {int(number)} ({number.name}){hint}"
    how = "was ended by signal 9 (SIGKILL)" if number else "ended without a word, as by signal 9 (SIGKILL)"
    on_this_host = process.host == socket.gethostname()
    cause = cause_of_kill(
        process.pid,
        process.started,
        # Elsewhere this path is another group's.
        record.memory_group if on_this_host else None,
        record.oom_kills,
        log=log,
        ticks_per_second=os.sysconf("SC_CLK_TCK"),
    )
    return f"{who} {how}; {cause}"


def _kernel_log(host: str) -> list[str]:
    return kernel_log() if host == socket.gethostname() else kernel_log_of(host)
