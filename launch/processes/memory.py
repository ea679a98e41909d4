"""Whether a process was ended for want of memory, as far as its control group and the kernel's log show it."""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
KERNEL_LOG = Path("/var/log/kern.log")
"""Where a syslog daemon keeps the kernel's messages, for those who may not ask the kernel."""

_COUNTERS = ("memory.events", "memory.oom_control")
"""Files with a line `oom_kill N`: of the second version of control groups, and of the first."""
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_NO_LIMIT = 1 << 60
"""The first version says this or more (in bytes) where there is no limit."""
_KILLED = re.compile(r"\[\s*(\d+)\.\d+\].*[Oo]ut of memory.*Killed process (\d+) ")
_LOG_SECONDS = 5
_LOG_BYTES = 1 << 20


def memory_group(membership: str | None = None, root: Path = CGROUPS) -> Path | None:
    """The directory of the control group that counts a process's memory and what was ended in it; None without one.

    Args:
        membership: the text of /proc/PID/cgroup; by default this process's.
        root: where the control groups are mounted.
    """
    if membership is None:
        try:
            membership = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        except OSError:
            return None
    for controllers, path in (line.split(":", 2)[1:] for line in membership.splitlines() if line.count(":") >= 2):
        if controllers not in ("", "memory"):
            continue
        own = root / controllers / path.lstrip("/")
        # A container may show its own group as the root, whatever the process's path outside of it is called.
        for group in (own, root / controllers):
            if any((group / name).is_file() for name in _COUNTERS):
                return group
    return None


def oom_kills(group: Path) -> int | None:
    """Processes of a control group that the kernel has ended for want of memory so far; None if it does not say."""
    for name in _COUNTERS:
        for line in _read(group / name).splitlines():
            key, _, count = line.partition(" ")
            if key == "oom_kill" and count.isdecimal():
                return int(count)
    return None


def limit_bytes(group: Path) -> int | None:
    """How much memory a control group may hold; None if that is not limited."""
    for name in _LIMITS:
        text = _read(group / name).strip()
        if text.isdecimal() and int(text) < _NO_LIMIT:
            return int(text)
    return None


def memory_bytes() -> int:
    """What this process may hold at most: the memory of the machine, or the limit of its control group."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = memory_group()
    limit = None if group is None else limit_bytes(group)
    return machine if limit is None else min(machine, limit)


def kernel_killed(log: Iterable[str], pid: int, started: str | None, ticks_per_second: int) -> bool:
    """Whether the kernel's log says that it ended a process for want of memory.

    Args:
        log: lines with `[seconds since boot]`.
        started: clock ticks from boot to the start of the process: an earlier line is about another one with its id.
        ticks_per_second: clock ticks.
    """
    if started is None:
        return False
    found = (match for match in map(_KILLED.search, log) if match is not None)
    return any(int(match[2]) == pid and int(match[1]) >= int(started) // ticks_per_second for match in found)


def kernel_log() -> list[str]:
    """The kernel's last messages, if this user may read them."""
    try:
        answer = subprocess.run(
            ["dmesg"], capture_output=True, text=True, errors="replace", timeout=_LOG_SECONDS, check=False
        )
        if answer.returncode == 0:
            return answer.stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        pass  # the file below may be there in its place
    try:
        with KERNEL_LOG.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def cause_of_kill(
    pid: int,
    started: str | None,
    group: str | None,
    counted_before: int | None,
    *,
    log: Sequence[str],
    ticks_per_second: int,
) -> str:
    """What this host shows of why a process of it was killed, as the rest of a sentence.

    Args:
        group: directory of its control group, if it can be read here.
        counted_before: what `oom_kills` gave when the process began.
        log: lines of the kernel's log.
    """
    if kernel_killed(log, pid, started, ticks_per_second):
        return f"the kernel's log says that it ended process {pid} for want of memory; {_REMEDY}"
    now = None if group is None else oom_kills(Path(group))
    counted = None if group is None else counted_since(Path(group), counted_before)
    if counted is not None:
        return counted
    looked_at = "the kernel's log shows no" if now is None else "neither its cgroup nor the kernel's log shows a"
    return f"{looked_at} lack of memory, so somebody may have killed it"


def counted_since(group: Path, before: int | None) -> str | None:
    """What a control group says of processes that the kernel has ended in it for want of memory since then, as the
    rest of a sentence; None if it counts none, or did not count.

    Args:
        before: what `oom_kills` gave then.
    """
    now = oom_kills(group)
    if now is None or before is None or now <= before:
        return None
    limit = limit_bytes(group)
    limited = "" if limit is None else f", limit {limit / 2**30:.1f} GiB"
    counted = f"the cgroup counted {now - before} oom_kill since the start{limited}"
    return f"memory is the likely cause: {counted}; {_REMEDY}"


_REMEDY = "lower batch.micro_visits or data.workers"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
