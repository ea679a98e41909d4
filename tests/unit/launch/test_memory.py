"""What the kernel's counters and log say of a process that signal 9 has ended."""

from pathlib import Path

import pytest

from launch.memory import MemoryEvents, killed_for_memory, own_cgroup, read_memory_events, why_killed

QUIET = MemoryEvents(0, 8 * 2**30, 7 * 2**30)
LOG = (
    "[1.0] usb 1-1: new device\n"
    "[2.0] Memory cgroup out of memory: Killed process 4711 (python) total-vm:9kB, anon-rss:8kB, UID:0\n"
    "[3.0] Out of memory: Kill process 815 (python) score 900 or sacrifice child\n"
)


def test_counters_of_version_2(tmp_path: Path):
    (tmp_path / "memory.events").write_text("low 0\nhigh 3\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n")
    (tmp_path / "memory.max").write_text("8589934592\n")
    (tmp_path / "memory.peak").write_text("7516192768\n")
    assert read_memory_events(tmp_path) == MemoryEvents(2, 8 * 2**30, 7 * 2**30)
    (tmp_path / "memory.max").write_text("max\n")
    assert read_memory_events(tmp_path).limit_bytes is None


def test_counters_of_version_1(tmp_path: Path):
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text("1024\n")
    assert read_memory_events(tmp_path) == MemoryEvents(1, None, 1024)


def test_what_is_not_there_or_says_nothing_is_unknown(tmp_path: Path):
    assert read_memory_events(tmp_path) == MemoryEvents(None, None, None)
    (tmp_path / "memory.events").write_text("")
    assert read_memory_events(tmp_path).oom_kills is None


@pytest.mark.parametrize(
    ("membership", "cgroup"),
    [
        ("0::/job/step\n", "job/step"),
        ("12:cpu,cpuacct:/x\n7:memory:/job\n0::/\n", "memory/job"),
        ("0::/outside/of/the/container\n", "."),
    ],
)
def test_the_own_cgroup_is_found(tmp_path: Path, membership: str, cgroup: str):
    root = tmp_path / "cgroup"
    counters = "memory.oom_control" if cgroup.startswith("memory") else "memory.events"
    (root / cgroup).mkdir(parents=True)
    (root / cgroup / counters).write_text("oom_kill 0\n")
    (tmp_path / "own").write_text(membership)
    assert own_cgroup(tmp_path / "own", root) == root / cgroup
    assert own_cgroup(tmp_path / "gone", root) is None


def test_the_kernels_log_names_the_process():
    assert killed_for_memory(LOG, 4711)
    assert killed_for_memory(LOG, 815)
    assert not killed_for_memory(LOG, 47)


def test_only_signal_9_is_explained():
    assert why_killed(0, before=QUIET, after=QUIET) is None
    assert why_killed(-15, before=QUIET, after=QUIET) is None


@pytest.mark.parametrize("returncode", [-9, 137])
def test_a_kill_that_the_cgroup_has_counted_is_one_for_memory(returncode: int):
    said = why_killed(returncode, before=QUIET, after=QUIET._replace(oom_kills=1))
    assert said.startswith("ended by signal 9: the kernel ended it for want of memory (limit 8.0 GiB); lower batch.")


def test_kills_of_before_prove_nothing():
    seen = QUIET._replace(oom_kills=3)
    assert "somebody killed it; the kernel has ended no process" in why_killed(-9, before=seen, after=seen)
    assert "for want of memory (limit" in why_killed(-9, before=seen, after=seen, pid=4711, kernel_log=LOG)


def test_without_counters_nothing_is_claimed():
    unknown = MemoryEvents(None, None, None)
    assert "which shows nowhere here" in why_killed(-9, before=unknown, after=unknown)
