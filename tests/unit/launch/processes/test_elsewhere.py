"""A launch with hosts beside this one: its ranks are asked through them, and its launcher never gets a SIGTERM."""

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.processes import local
from launch.processes.local import Outcome, run_launcher

NOTICES_SIGTERM = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[1]) / 'pkill').touch())
os.kill(os.getppid(), signal.SIGTERM)
while not (Path(sys.argv[1]) / 'saved').exists():
    time.sleep(0.01)
"""


@dataclass
class Hosts:
    """Other hosts: whether ranks are up there, for how many looks they stay, and what they were asked."""

    ranks: Path
    up: bool
    looks: int = 0
    asked: list[str] = field(default_factory=list)

    def stop(self) -> bool:
        self.asked.append("stop")
        if self.up:
            (self.ranks / "saved").touch()
        return self.up

    def end(self) -> None:
        self.asked.append("end")

    def kill(self) -> None:
        self.asked.append("kill")

    def live(self) -> tuple[str, ...]:
        self.looks -= 1
        return ("node2",) if self.looks >= 0 else ()


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(local, "POLL_HOSTS_SECONDS", 0.05)


def run(code: str, hosts: Hosts, *, leave: float = 300.0) -> Outcome:
    return run_launcher(
        [sys.executable, "-c", code, str(hosts.ranks)],
        environment=os.environ,
        ranks=hosts.ranks,
        processes=1,
        leave_seconds=leave,
        say=lambda _: None,
        elsewhere=hosts,
    )


def test_ranks_of_other_hosts_are_asked_and_the_launcher_is_left_alone(tmp_path: Path):
    hosts = Hosts(tmp_path, up=True)
    assert run(NOTICES_SIGTERM, hosts) == Outcome(0, stopped_early=False, killed=False)
    assert hosts.asked == ["stop"]
    assert not (tmp_path / "pkill").exists()


def test_a_start_is_ended_on_every_host_and_here_without_the_launchers_handler(tmp_path: Path):
    hosts = Hosts(tmp_path, up=False)
    assert run(NOTICES_SIGTERM, hosts) == Outcome(-signal.SIGKILL, stopped_early=True, killed=False)
    assert hosts.asked == ["stop", "end"]
    assert not (tmp_path / "pkill").exists()


def test_ranks_that_lost_their_launcher_go_on_and_are_named(tmp_path: Path):
    hosts = Hosts(tmp_path, up=True, looks=9)
    outcome = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", hosts)
    assert outcome == Outcome(-signal.SIGKILL, stopped_early=False, killed=False, left=("node2",))
    assert hosts.asked == []


def test_after_a_stop_ranks_of_other_hosts_are_waited_for(tmp_path: Path):
    hosts = Hosts(tmp_path, up=True, looks=3)
    assert run(NOTICES_SIGTERM, hosts) == Outcome(0, stopped_early=False, killed=False)
    assert hosts.looks < 0


def test_after_a_stop_ranks_that_do_not_leave_are_killed_on_every_host(tmp_path: Path):
    hosts = Hosts(tmp_path, up=True, looks=1_000_000)
    assert run(NOTICES_SIGTERM, hosts, leave=0.2) == Outcome(0, stopped_early=False, killed=True)
    assert hosts.asked == ["stop", "kill"]
