"""`status`, `stop` and `attach` tell what is true of a run, and touch its own processes alone."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from launch.processes.ranks import attending, is_asked_to_stop
from shards.errors import UserError
from tests.processes import leave_record, sleeper
from tests.ssh import install_ssh
from trainer.cli import main
from trainer.commands.attach import Tail
from trainer.commands.status import details, report
from trainer.commands.stop import stop
from trainer.config import load_config
from trainer.run_directory import RunDirectory, Status

HERE = socket.gethostname()


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunDirectory:
    """A run of 40 steps that says that it runs, at step 20; nothing of it is alive."""
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("batch: {visits: 4, micro_visits: 2}\nmodel: {freeze: []}\nlimits: {epochs: 4}\n")
    made = RunDirectory(Path("runs/tiny"))
    made.create()
    made.write_config(load_config(recipe))
    made.write_status(Status(state="running", global_step=20, epoch=2))
    records = [
        {"step": 10, "time": time.time() - 9, "val/accuracy": 0.5},
        {"step": 20, "time": time.time() - 8, "val/accuracy": 0.25},
        {
            "step": 25,
            "time": time.time() - 7,
            "progress/epoch": 2.5,
            "speed/questions_per_second": 412.4,
            "speed/left_seconds": 90.0,
        },
    ]
    made.metrics.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 26, "ti')
    return made


class TestStatus:
    def test_a_run_whose_processes_are_gone_is_dead(self, run: RunDirectory):
        leave_record(run.ranks, 0, 4_000_000, host=HERE, started="1")
        assert report(run).state == "dead"

    def test_a_table_of_all_runs(self, run: RunDirectory, capsys):
        other = RunDirectory(run.path.with_name("other"))
        other.create()
        other.write_status(Status(state="done", exit_code=0, global_step=7))
        damaged = run.path.with_name("broken")
        damaged.mkdir()
        (damaged / "status.json").write_text("{")
        with sleeper() as process:
            leave_record(run.ranks, 0, process.pid, host=HERE)
            assert main(["status"]) == 0
        titles, *rows = capsys.readouterr().out.splitlines()
        assert titles.split() == ["run", "state", "step", "epoch", "best", "questions/s", "left", "hosts"]
        assert [row.split()[:2] for row in rows] == [["broken", "damaged:"], ["other", "done"], ["tiny", "running"]]
        words = f"tiny running 25 of 40 2.5 of 4 val/accuracy 0.5000 412 1 min 30 s {HERE}"
        assert rows[2].split() == words.split()

    def test_json_holds_everything(self, run: RunDirectory, capsys):
        with sleeper() as process, attending(run.ranks, "logs/console.log"):
            leave_record(run.ranks, 0, process.pid, host=HERE)
            leave_record(run.ranks, 1, process.pid, host=HERE, exit_code=75)
            (run.ranks / "rank2.pid").touch()
            assert main(["status", str(run.path), "--json"]) == 0
            said = json.loads(capsys.readouterr().out)
            assert (said["state"], said["step"], said["total_steps"]) == ("running", 25, 40)
            assert said["best"] == {"metric": "val/accuracy", "value": 0.5, "step": 10}
            assert [(rank["life"], rank["exit_code"]) for rank in said["ranks"]] == [("alive", None), ("gone", 75)]
            assert said["attendant"]["pid"] == os.getpid()
            assert said["damaged"] == ["rank2.pid"]
            assert 6 < said["seconds_since_last_line"] < 600

    def test_a_host_that_is_down_leaves_the_run_unknown(self, run: RunDirectory, tmp_path: Path, monkeypatch):
        install_ssh(tmp_path / "bin", monkeypatch, down=("node2",))
        leave_record(run.ranks, 0, 77, host="node2", started="5")
        found = report(run)
        assert found.state == "unknown"
        lines = "\n".join(details(found))
        assert "process 77 on node2, unknown" in lines
        assert "does not answer: ssh: connect to host node2 port 22: No route to host" in lines

    def test_what_is_no_run(self, tmp_path: Path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["status"]) == 2
        assert main(["attach", "runs/none"]) == main(["stop", "runs/none"]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert [line.split(";")[0] for line in errors] == [
            "duoflow: runs: is no directory",
            "duoflow: runs/none: is no directory",
            "duoflow: runs/none: is no directory",
        ]


class TestStop:
    def test_a_rank_elsewhere_gets_one_signal_and_is_waited_for(self, run, tmp_path: Path, monkeypatch, capsys):
        hosts = install_ssh(tmp_path / "bin", monkeypatch)
        with sleeper() as one:
            leave_record(run.ranks, 0, one.pid, host="node1")
            assert stop(run.path) == 0
            assert one.wait() == -signal.SIGTERM
        signalled = [words for words in hosts.asked if words[4:5] == [str(int(signal.SIGTERM))]]
        assert len(signalled) == 1
        assert is_asked_to_stop(run.ranks)
        assert "failed at step 20 (exit code 1)" in capsys.readouterr().out

    def test_what_ignores_it_is_killed_only_if_asked(self, run: RunDirectory, capsys):
        with sleeper(stubborn=True) as stubborn:
            leave_record(run.ranks, 0, stubborn.pid, host=HERE)
            assert stop(run.path, wait_seconds=0.1) == 1
            assert "did not leave within 0.1 s" in capsys.readouterr().err
            assert stubborn.poll() is None
            assert stop(run.path, kill=True, wait_seconds=0.1) == 0
            assert stubborn.wait() == -signal.SIGKILL
        status = run.read_status()
        assert status is not None
        assert (status.state, status.exit_code) == ("failed", 1)
        assert status.message == "killed by `duoflow stop --kill`; the last checkpoint stays"
        assert "killing them with SIGKILL" in capsys.readouterr().err

    def test_before_any_rank_is_up_its_starter_is_asked(self, run: RunDirectory):
        with sleeper() as starter:
            leave_record(run.ranks, 0, starter.pid, host=HERE)
            (run.ranks / "rank0.pid").rename(run.ranks / "attendant.pid")
            assert stop(run.path) == 0
            assert starter.wait() == -signal.SIGTERM

    def test_another_process_with_a_ranks_id_is_left_alone(self, run: RunDirectory, capsys):
        with sleeper() as innocent:
            leave_record(run.ranks, 0, innocent.pid, host=HERE, started="1")
            assert stop(run.path, kill=True, wait_seconds=0) == 0
            assert innocent.poll() is None
        assert "it does not run, so there is nothing to stop" in capsys.readouterr().out

    def test_a_stopped_run_is_fine(self, run: RunDirectory, capsys):
        run.write_status(Status(state="stopped", exit_code=75, global_step=20, message="stopped by SIGTERM"))
        assert stop(run.path) == 0
        assert "stopped at step 20 (exit code 75): stopped by SIGTERM; it does not run" in capsys.readouterr().out

    def test_hosts_that_cannot_be_asked_are_a_refusal(self, run: RunDirectory, tmp_path: Path, monkeypatch):
        install_ssh(tmp_path / "bin", monkeypatch, down=("node1",))
        leave_record(run.ranks, 0, 77, host="node1", started="5")
        with pytest.raises(UserError, match=r"cannot be looked up elsewhere \(node1: ssh: connect"):
            stop(run.path)


class TestAttach:
    @pytest.mark.parametrize(("state", "code"), [("done", 0), ("stopped", 75), ("failed", 1), ("failed", 2)])
    def test_a_run_that_has_ended_gives_its_code(self, run: RunDirectory, state, code: int, capsys):
        run.write_status(Status(state=state, exit_code=code, global_step=20, message="so it ended"))
        run.rank_log(0).write_text("first\nlast\n")
        assert main(["attach", str(run.path)]) == code
        assert (
            capsys.readouterr().out == f"first\nlast\n{run.path}: {state} at step 20 (exit code {code}): so it ended\n"
        )

    def test_a_dead_run_is_settled_by_whoever_looks(self, run: RunDirectory, capsys):
        leave_record(run.ranks, 1, 4_000_000, host=HERE, started="1")
        assert main(["attach", str(run.path)]) == 1
        status = run.read_status()
        assert status is not None
        assert (status.state, status.global_step) == ("failed", 20)
        assert f"rank 1 on {HERE} (process 4000000) ended without a word" in capsys.readouterr().out

    def test_what_is_added_to_a_log_is_shown_once(self, tmp_path: Path):
        log = tmp_path / "console.log"
        tail = Tail(log, 2)
        assert tail.read() == b""
        log.write_bytes(b"1\n2\n3\n")
        assert (tail.read(), tail.read()) == (b"2\n3\n", b"")
        with log.open("ab") as file:
            file.write(b"4\n")
        assert tail.read() == b"4\n"
