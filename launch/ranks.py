"""Which processes of a run are alive: every rank leaves its process id in a file, and others look it up there."""

import json
import os
import signal
import socket
from pathlib import Path


def record_rank(directory: Path, rank: int) -> None:
    """Leave this process's id in `directory`, for `live_ranks`.

    From now on a stop signal may arrive here alone, without the launcher's: install its handler before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pid = os.getpid()
    record = {"pid": pid, "started": _start_time(pid), "host": socket.gethostname()}
    aside = directory / f".rank{rank}.{pid}"
    aside.write_text(json.dumps(record), encoding="utf-8")
    aside.replace(directory / f"rank{rank}.pid")


def recorded_ranks(directory: Path) -> int:
    """How many ranks have left their process id, alive or not."""
    return len(list(directory.glob("rank*.pid")))


def live_ranks(directory: Path) -> list[int]:
    """Process ids of the recorded ranks that run on this host.

    A process that only has the same id is not taken for a rank: its start time differs. Zombies count as gone; where
    nobody collects them (a container without an init process) they would stay for ever.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("rank*.pid"))]
    host = socket.gethostname()
    return [record["pid"] for record in records if record["host"] == host and _runs(record["pid"], record["started"])]


def forget_ranks(directory: Path) -> None:
    """Remove the records of an earlier start."""
    for path in directory.glob("rank*.pid"):
        path.unlink(missing_ok=True)


def send(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to processes; those that have just gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _runs(pid: int, started: str | None) -> bool:
    if started is None:
        return _answers(pid)
    fields = _stat_fields(pid)
    return fields is not None and fields[0] not in "ZX" and fields[19] == started


def _start_time(pid: int) -> str | None:
    """Clock ticks from boot to the start of a process; None where there is no /proc."""
    fields = _stat_fields(pid)
    return None if fields is None else fields[19]


def _stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from the third field (the state) on; the second may hold blanks and parentheses (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
