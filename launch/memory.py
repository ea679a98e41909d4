"""Whether the kernel ended a process for want of memory: what cgroups count and the kernel's log says of it."""

import re
import signal
from pathlib import Path
from typing import NamedTuple

_KILLED = re.compile(r"(?:Out of memory|Memory cgroup out of memory).*?[Kk]ill(?:ed)? process (\d+)")


class MemoryEvents(NamedTuple):
    """What a cgroup has counted since it was made."""

    oom_kills: int | None
    """Processes that the kernel has ended in it for want of memory; None where nothing counts them."""
    limit_bytes: int | None
    """None is no limit."""
    peak_bytes: int | None
    """None where the kernel does not keep it."""


def read_memory_events(cgroup: Path | None = None) -> MemoryEvents:
    """The counters of this process's cgroup, of version 2 or 1.

    Take them before the processes start and again when one has ended: only a difference says something about them.

    Args:
        cgroup: its directory; None looks it up.
    """
    if cgroup is None:
        cgroup = own_cgroup()
    if cgroup is None:
        return MemoryEvents(None, None, None)
    kills = _counter(cgroup / "memory.events", "oom_kill")
    if kills is None:
        kills = _counter(cgroup / "memory.oom_control", "oom_kill")
    limit = _number(cgroup / "memory.max", cgroup / "memory.limit_in_bytes")
    if limit is not None and limit >= 2**60:  # version 1 says so that there is none
        limit = None
    return MemoryEvents(kills, limit, _number(cgroup / "memory.peak", cgroup / "memory.max_usage_in_bytes"))


def own_cgroup(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """The directory of this process's memory cgroup; None where there is none to see.

    In a container the path that the kernel tells may be that outside; then its own root is the cgroup.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            home = root / "memory"
        elif (number, controllers) == ("0", ""):
            home = root
        else:
            continue
        for directory in (home / path.lstrip("/"), home):
            if any((directory / name).exists() for name in ("memory.events", "memory.oom_control")):
                return directory
    return None


def killed_for_memory(kernel_log: str, pid: int) -> bool:
    """Whether the kernel's log (what `dmesg` prints) says that it ended this process for want of memory.

    In a container it has the id of the process outside, and then finds nothing.
    """
    return any(int(found[1]) == pid for found in _KILLED.finditer(kernel_log))


def why_killed(
    returncode: int, *, before: MemoryEvents, after: MemoryEvents, pid: int | None = None, kernel_log: str = ""
) -> str | None:
    """What to say of a process that signal 9 ended; None of one that ended otherwise.

    Args:
        returncode: as subprocess has it: negative for a signal. A shell's 137 is the same.
        before, after: of its cgroup.
        pid: its id, to find it in `kernel_log`.
    """
    if returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return None
    kills = None if after.oom_kills is None or before.oom_kills is None else after.oom_kills - before.oom_kills
    if kills or (pid is not None and killed_for_memory(kernel_log, pid)):
        limit = "" if after.limit_bytes is None else f" (limit {after.limit_bytes / 2**30:.1f} GiB)"
        return (
            f"ended by signal 9: the kernel ended it for want of memory{limit}; lower batch.micro_visits or "
            "data.workers, or give the job more memory"
        )
    if kills is None:
        return "ended by signal 9: somebody killed it, or the kernel for want of memory, which shows nowhere here"
    return "ended by signal 9: somebody killed it; the kernel has ended no process for want of memory"


def _counter(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    fields = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(fields[name]) if fields.get(name, "").strip().isdecimal() else None


def _number(*paths: Path) -> int | None:
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None
