"""A lack of memory is claimed where a counter rose or the kernel named the process, and nowhere else."""

from pathlib import Path

import pytest

from launch.processes.memory import cause_of_kill, kernel_killed, limit_bytes, memory_group, oom_kills

TICKS = 100
LOG = [
    "[  100.250000] Out of memory: Killed process 41 (python) total-vm:9kB, anon-rss:8kB",
    "[  500.000001] Memory cgroup out of memory: Killed process 42 (python) total-vm:9kB",
    "[  600.000000] python[43]: segfault at 0",
]


def second_version(root: Path, kills: int = 0, limit: str = "max") -> Path:
    group = root / "job.slice"
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.events").write_text(f"low 0\nhigh 3\nmax 9\noom 2\noom_kill {kills}\noom_group_kill 0\n")
    (group / "memory.max").write_text(f"{limit}\n")
    return group


def first_version(root: Path, kills: int = 0, limit: int = 9223372036854771712) -> Path:
    group = root / "memory" / "job"
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    return group


def test_the_group_of_both_versions_is_found_by_its_counter(tmp_path: Path):
    new, old = second_version(tmp_path / "new", 3), first_version(tmp_path / "old", 4)
    assert memory_group("0::/job.slice\n", tmp_path / "new") == new
    assert memory_group("4:memory:/job\n1:cpu:/\n0::/\n", tmp_path / "old") == old
    assert (oom_kills(new), oom_kills(old)) == (3, 4)


def test_a_container_that_sees_its_group_as_the_root(tmp_path: Path):
    root = second_version(tmp_path).rename(tmp_path / "root")
    assert memory_group("0::/docker/abc\n", root) == root


def test_without_control_groups_nothing_is_known(tmp_path: Path):
    assert memory_group("0::/x\n", tmp_path) is None
    assert memory_group("garbage\n", tmp_path) is None
    assert oom_kills(tmp_path) is None


def test_limits(tmp_path: Path):
    assert limit_bytes(second_version(tmp_path, limit=str(24 << 30))) == 24 << 30
    assert limit_bytes(second_version(tmp_path)) is None
    assert limit_bytes(first_version(tmp_path)) is None


@pytest.mark.parametrize(
    ("pid", "started", "killed"),
    [
        (41, "1000", True),
        (42, "49900", True),
        (42, "51000", False),
        (43, "1", False),
        (4, "1", False),
        (41, None, False),
    ],
)
def test_the_kernels_log_names_the_process_and_not_an_earlier_one_with_its_id(pid, started, killed):
    assert kernel_killed(LOG, pid, started, TICKS) is killed


def said(group: Path, before: int | None, log: list[str] | None = None, pid: int = 42) -> str:
    return cause_of_kill(pid, "100", str(group), before, log=log or [], ticks_per_second=TICKS)


def test_a_counter_that_rose_makes_memory_the_likely_cause(tmp_path: Path):
    group = second_version(tmp_path, kills=3, limit=str(24 << 30))
    assert said(group, 2) == (
        "memory is the likely cause: the cgroup counted 1 oom_kill since the start, limit 24.0 GiB; lower "
        "batch.micro_visits or data.workers"
    )


@pytest.mark.parametrize("before", [3, None])
def test_a_counter_that_stands_or_was_not_read_proves_nothing(tmp_path: Path, before: int | None):
    assert "somebody may have killed it" in said(second_version(tmp_path, kills=3), before)


def test_the_kernels_log_is_believed_first(tmp_path: Path):
    assert said(second_version(tmp_path), 0, LOG).startswith("the kernel's log says that it ended process 42 for want")
