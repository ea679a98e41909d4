"""Processes that wait to be looked up and signalled, and the records that ranks leave of themselves."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from launch.processes.ranks import Process, record_rank


@contextlib.contextmanager
def sleeper(*, stubborn: bool = False) -> Iterator[subprocess.Popen]:
    """A process that does nothing, and that SIGTERM ends unless it is stubborn; it is killed in the end."""
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if stubborn else ""
    code = f"import signal, time; {ignore}print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def start_ticks(pid: int) -> str:
    """When a process began, as /proc has it (proc(5), field 22)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def leave_record(
    directory: Path, rank: int, pid: int, *, host: str, started: str | None = None, **more: object
) -> None:
    """The record of a rank that is another process, or on another host."""
    record_rank(directory, rank)
    path = directory / f"rank{rank}.pid"
    own = {"pid": pid, "host": host, "started": start_ticks(pid) if started is None else started}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own, **more}))


def as_process(pid: int, host: str) -> Process:
    return Process(pid, start_ticks(pid), host)
