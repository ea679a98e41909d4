"""Ranks are looked up and signalled on their own hosts: constant words and digits, and no host is waited for long."""

import signal
import socket
import time
from pathlib import Path

from launch.hosts.deaths import describe_deaths, signal_of
from launch.hosts.remote_hosts import CONNECT_SECONDS, ask_hosts
from launch.hosts.watch import signal_processes, take_census
from launch.processes.ranks import attending
from tests.processes import as_process, leave_record, sleeper, start_ticks
from tests.ssh import install_ssh

HERE = socket.gethostname()


def test_a_process_elsewhere_is_alive_until_it_is_gone(tmp_path: Path, monkeypatch):
    hosts = install_ssh(tmp_path / "bin", monkeypatch)
    with sleeper() as one, sleeper() as two:
        processes = [as_process(one.pid, "node1"), as_process(two.pid, "node2")]
        assert {host: set(answer.alive) for host, answer in ask_hosts(processes).items()} == {
            "node1": {one.pid},
            "node2": {two.pid},
        }
        one.kill()  # a zombie from here on
        time.sleep(0.1)
        assert ask_hosts(processes)["node1"].alive == frozenset()
    command = ["sh", "-s", "--", "0", str(one.pid), processes[0].started]
    assert ["node1", *command] in hosts.asked


def test_a_process_elsewhere_is_signalled_and_another_with_its_id_is_not(tmp_path: Path, monkeypatch):
    install_ssh(tmp_path / "bin", monkeypatch)
    with sleeper() as process:
        right = as_process(process.pid, "node1")
        assert signal_processes([right._replace(started="1")], signal.SIGKILL) == []
        assert process.poll() is None
        assert signal_processes([right], signal.SIGTERM) == []
        assert process.wait() == -signal.SIGTERM


def test_hosts_that_are_down_are_named_and_the_others_answer(tmp_path: Path, monkeypatch):
    install_ssh(tmp_path / "bin", monkeypatch, down=("node2",))
    ranks = tmp_path / "ranks"
    with sleeper() as process:
        leave_record(ranks, 0, process.pid, host="node1")
        leave_record(ranks, 1, process.pid, host="node2")
        leave_record(ranks, 2, process.pid, host=HERE)
        census = take_census(ranks)
        assert [view.life for view in census.ranks] == ["alive", "unknown", "alive"]
        assert census.unreachable == (("node2", "ssh: connect to host node2 port 22: No route to host"),)
        assert census.is_unknown
        assert [view.life for view in take_census(ranks, ask_others=False).ranks] == ["unknown", "unknown", "alive"]


def test_ssh_connects_within_seconds_or_not_at_all(tmp_path: Path, monkeypatch):
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" > "$0.said"\nexit 255\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    ask_hosts([as_process(1, "node1")])
    words = (tmp_path / "bin" / "ssh.said").read_text().split()
    # ssh takes the first value that it finds for an option.
    assert next(word for word in words if "ConnectTimeout" in word) == f"ConnectTimeout={CONNECT_SECONDS}"
    assert "BatchMode=yes" in words


def test_a_rank_that_has_left_a_last_word_is_not_looked_for(tmp_path: Path, monkeypatch):
    hosts = install_ssh(tmp_path / "bin", monkeypatch, down=("node1",))
    leave_record(tmp_path / "ranks", 0, 1, host="node1", exit_code=75)
    assert take_census(tmp_path / "ranks").is_gone
    assert hosts.asked == []


def test_orphans_are_ranks_whose_attendant_was_killed(tmp_path: Path):
    with sleeper() as process:
        leave_record(tmp_path, 0, process.pid, host=HERE)
        with attending(tmp_path, None):
            assert not take_census(tmp_path).has_orphans
        assert not take_census(tmp_path).has_orphans, "it left as it should"
        leave_record(tmp_path, 0, process.pid, host=HERE)
        gone = (tmp_path / "rank0.pid").read_text().replace(start_ticks(process.pid), "1")
        (tmp_path / "attendant.pid").write_text(gone)
        assert take_census(tmp_path).has_orphans


class TestDeaths:
    def test_the_signal_behind_an_exit_code(self):
        assert [signal_of(code) for code in (-9, 137, 247, 245)] == [*[signal.SIGKILL] * 3, signal.SIGSEGV]
        # 241 and 143 are SIGTERM: ranks leave a last word at it.
        assert [signal_of(code) for code in (None, 0, 1, 2, 75, 241, 143, 255)] == [None] * 8

    def test_where_nccl_ends_a_process_the_logs_are_named(self, tmp_path: Path):
        leave_record(tmp_path, 0, 4_000_000, host=HERE, started="1")
        said = describe_deaths(tmp_path, 256 - signal.SIGABRT)
        assert said is not None
        assert "was ended by signal 6 (SIGABRT); on a GPU that is how NCCL ends a process" in said
        assert "NCCL" not in str(describe_deaths(tmp_path, 256 - signal.SIGSEGV))

    def test_ranks_that_left_a_word_or_run_are_none(self, tmp_path: Path):
        with sleeper() as process:
            leave_record(tmp_path, 0, process.pid, host=HERE)
            leave_record(tmp_path, 1, 4_000_000, host=HERE, started="1", exit_code=1)
            assert describe_deaths(tmp_path, 1) is None

    def test_a_killed_rank_is_named_with_its_host(self, tmp_path: Path):
        leave_record(tmp_path, 1, 4_000_000, host=HERE, started="1")
        known, unknown = describe_deaths(tmp_path, 247), describe_deaths(tmp_path, 1)
        assert known is not None
        assert unknown is not None
        assert known.startswith(f"rank 1 on {HERE} (process 4000000) was ended by signal 9 (SIGKILL); ")
        assert unknown.startswith(
            f"rank 1 on {HERE} (process 4000000) ended without a word, as by signal 9 (SIGKILL); "
        )
        assert describe_deaths(tmp_path, 245) == f"rank 1 on {HERE} (process 4000000) was ended by signal 11 (SIGSEGV)"

    def test_the_kernel_of_another_host_is_asked_for_its_ranks(self, tmp_path: Path, monkeypatch):
        install_ssh(tmp_path / "bin", monkeypatch)
        dmesg = tmp_path / "bin" / "dmesg"
        dmesg.write_text("#!/bin/sh\necho '[  500.1] Memory cgroup out of memory: Killed process 4000000 (python) a'\n")
        dmesg.chmod(0o755)
        leave_record(tmp_path / "ranks", 1, 4_000_000, host="node2", started="1")
        leave_record(tmp_path / "ranks", 2, 4_000_001, host="node2", started="1")
        killed, other = (describe_deaths(tmp_path / "ranks", 247) or "").split("; rank 2 on ")
        assert killed.startswith(
            "rank 1 on node2 (process 4000000) was ended by signal 9 (SIGKILL); the kernel's log says"
        )
        assert other.endswith("the kernel's log shows no lack of memory, so somebody may have killed it")

    def test_a_lost_host_is_named_with_its_ranks(self, tmp_path: Path, monkeypatch):
        install_ssh(tmp_path / "bin", monkeypatch, down=("node2",))
        for rank in (2, 3):
            leave_record(tmp_path / "ranks", rank, 1, host="node2")
        said = "node2, the host of rank 2, 3, does not answer (ssh: connect to host node2 port 22: No route to host)"
        assert describe_deaths(tmp_path / "ranks", 255) == said
