"""Which processes of a run are alive: every rank leaves its process id in a file, and others look it up there.

A record also says how the rank ended, if it left by itself, and what its control group had counted when it began: by
these a rank that was killed is told from one that failed.
"""

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from launch.plan.words import is_host
from launch.processes.memory import memory_group, oom_kills

_RECORD_NAME = re.compile(r"rank(\d+)\.pid")
_ATTENDANT = "attendant.pid"
_STOP_MARK = "stop"


class Process(NamedTuple):
    """A process that can be told from another one with the same id."""

    pid: int
    started: str | None
    """Clock ticks from boot to its start; None where there is no /proc."""
    host: str


class RankRecord(NamedTuple):
    """What a rank has left of itself."""

    rank: int
    process: Process
    exit_code: int | None = None
    """With which it left by itself; None while it runs, and for ever if it was killed."""
    memory_group: str | None = None
    """Directory of the control group that counts its memory; None where there is none."""
    oom_kills: int | None = None
    """Processes that the kernel had ended in this group for want of memory, when the rank began."""


class Attendant(NamedTuple):
    """The process that started the ranks, or adopted them, and settles how the run ended."""

    process: Process
    log: str | None
    """Where its console goes, relative to the run's directory; None is a terminal, or a file of the user's."""


def this_process() -> Process:
    pid = os.getpid()
    return Process(pid, _start_time(pid), socket.gethostname())


def record_rank(directory: Path, rank: int) -> None:
    """Leave this process's id in `directory`, for `live_ranks`.

    From now on a stop signal may arrive here alone, without the launcher's: install its handler before.
    """
    group = memory_group()
    counted = None if group is None else oom_kills(group)
    _write(directory, rank, RankRecord(rank, this_process(), None, None if group is None else str(group), counted))


def record_end(directory: Path, rank: int, code: int) -> None:
    """Leave the exit code of this process, if `record_rank` was called in it: a rank without one was killed."""
    record = _read_record(directory / f"rank{rank}.pid")
    if record is not None and record.process == this_process():
        _write(directory, rank, record._replace(exit_code=code))


def read_records(directory: Path) -> list[RankRecord]:
    """The ranks that have left their process id, alive or not, by rank; files that say nothing are passed over."""
    records = (_read_record(path) for path in directory.glob("rank*.pid"))
    return sorted(record for record in records if record is not None)


def damaged_records(directory: Path) -> list[str]:
    """Names of records that are empty or no records at all, as a crash or a full disk leaves them."""
    return sorted(path.name for path in directory.glob("*.pid") if path.name != _ATTENDANT and not _read_record(path))


def recorded_ranks(directory: Path) -> int:
    """How many ranks have left their process id, alive or not."""
    return len(read_records(directory))


def live_ranks(directory: Path) -> list[int]:
    """Process ids of the recorded ranks that run on this host.

    A process that only has the same id is not taken for a rank: its start time differs. Zombies count as gone; where
    nobody collects them (a container without an init process) they would stay for ever.
    """
    return [record.process.pid for record in read_records(directory) if runs_here(record.process)]


def runs_here(process: Process) -> bool:
    """Whether a process is alive, on this host."""
    return process.host == socket.gethostname() and _runs(process.pid, process.started)


def forget_ranks(directory: Path) -> None:
    """Remove what an earlier start has left: records, whatever is in them, and the wish to stop."""
    for path in (*directory.glob("rank*.pid"), directory / _STOP_MARK):
        path.unlink(missing_ok=True)


def send(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to processes; those that have just gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def send_exactly(number: signal.Signals, processes: Sequence[Process]) -> list[Process]:
    """Signal processes of this host, and never another one that has got the id of one that is gone.

    Returns:
        Those that were alive.
    """
    reached = []
    for process in processes:
        with contextlib.suppress(ProcessLookupError), _handle_on(process.pid) as handle:
            # From here on the handle belongs to this one process: an id that changes hands is seen now, or not hit.
            if runs_here(process):
                _signal_handle(handle, process.pid, number)
                reached.append(process)
    return reached


@contextlib.contextmanager
def attending(directory: Path, log: str | None) -> Iterator[None]:
    """While entered, this process is the run's attendant; others find it with `read_attendant`."""
    path = directory / _ATTENDANT
    own = this_process()
    _write_whole(path, {**own._asdict(), "log": log})
    try:
        yield
    finally:
        current = read_attendant(directory)
        if current is not None and current.process == own:
            path.unlink(missing_ok=True)


def read_attendant(directory: Path) -> Attendant | None:
    """The attendant that was there last, alive or not; None if it has left as it should, or nobody can read who it
    was."""
    values = _read_object(directory / _ATTENDANT)
    process = _process_of(values)
    log = values.get("log")
    # It names a file that others show: nothing outside the run's directory.
    inside = isinstance(log, str) and not Path(log).is_absolute() and ".." not in Path(log).parts
    return None if process is None else Attendant(process, log if inside else None)


def ask_to_stop(directory: Path) -> None:
    """Leave word that the run was stopped on purpose, for an attendant that would start it again."""
    (directory / _STOP_MARK).touch()


def is_asked_to_stop(directory: Path) -> bool:
    """Whether somebody has, since the last start."""
    return (directory / _STOP_MARK).exists()


def _write(directory: Path, rank: int, record: RankRecord) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    values = record._asdict()
    process = values.pop("process")
    _write_whole(directory / f"rank{rank}.pid", {**process._asdict(), **values})


def _write_whole(path: Path, values: dict[str, object]) -> None:
    aside = path.with_name(f".{path.stem}.{os.getpid()}")
    aside.write_text(json.dumps(values), encoding="utf-8")
    aside.replace(path)


def _read_record(path: Path) -> RankRecord | None:
    name = _RECORD_NAME.fullmatch(path.name)
    values = _read_object(path)
    process = _process_of(values)
    if name is None or process is None:
        return None
    code, group, counted = (values.get(key) for key in ("exit_code", "memory_group", "oom_kills"))
    return RankRecord(
        int(name[1]),
        process,
        code if isinstance(code, int) else None,
        group if isinstance(group, str) else None,
        counted if isinstance(counted, int) else None,
    )


def _read_object(path: Path) -> dict[str, object]:
    """What a file of JSON says; nothing if it cannot be read: another process may be removing it, or a crash has."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _process_of(values: dict[str, object]) -> Process | None:
    """Only ids that name one process: a signal to 0 or to a negative one reaches whole groups."""
    pid, started, host = (values.get(key) for key in ("pid", "started", "host"))
    if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
        return None
    if started is not None and not (isinstance(started, str) and started.isascii() and started.isdecimal()):
        return None
    if not isinstance(host, str) or not is_host(host):
        return None
    return Process(pid, started, host)


@contextlib.contextmanager
def _handle_on(pid: int) -> Iterator[int | None]:
    """A descriptor of the process that has this id now; None where the system has no such thing."""
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _signal_handle(handle: int | None, pid: int, number: signal.Signals) -> None:
    if handle is None:
        os.kill(pid, number)
    else:
        signal.pidfd_send_signal(handle, number)


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
