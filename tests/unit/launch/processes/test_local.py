"""One signal reaches each rank once, nobody is left behind, and the launcher's early end loses nothing.

The launchers here are a few lines of Python with the habits of the real one.
"""

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.processes import local
from launch.processes.local import Outcome, launcher_command, launcher_environment, run_launcher
from launch.processes.ranks import live_ranks, record_rank, recorded_ranks

ROOT = Path(__file__).parents[4]

RANK = """
import os, signal, sys, time
from pathlib import Path
from launch.processes.ranks import record_rank
directory, rank, saving_seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
record_rank(directory, rank)
while not received:
    time.sleep(0.01)
time.sleep(saving_seconds)
(directory / f"saved{rank}").write_text(str(len(received)))
sys.exit(75)
"""

BOTH_RANKS_UP = """
import os, signal, subprocess, sys, time
from pathlib import Path
directory, rank_code, saving_seconds = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
duoflow = os.getppid()
ranks = [subprocess.Popen([sys.executable, "-c", rank_code, str(directory), str(r), saving_seconds]) for r in (0, 1)]
while len(list(directory.glob("rank*.pid"))) < 2:
    time.sleep(0.01)
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    directory = tmp_path / "ranks"
    directory.mkdir()
    return directory


def run(code: str, ranks: Path, *, saving: float = 0.0, leave: float = 20.0, said: list[str] | None = None) -> Outcome:
    """Run a launcher written in Python, with the directory, the code of a rank and its saving time as arguments."""
    return run_launcher(
        [sys.executable, "-c", code, str(ranks), RANK, str(saving)],
        environment={**os.environ, "PYTHONPATH": str(ROOT)},
        ranks=ranks,
        processes=2,
        leave_seconds=leave,
        say=(said if said is not None else []).append,
    )


def saved(ranks: Path) -> dict[str, str]:
    """Which ranks have saved, and how many SIGTERMs each of them got."""
    return {path.name: path.read_text() for path in ranks.glob("saved*")}


class TestCommand:
    def read(self, monkeypatch: pytest.MonkeyPatch, processes: int, *gpus: str) -> argparse.Namespace:
        """The command as DeepSpeed's launcher of a node reads it."""
        launcher = pytest.importorskip("deepspeed.launcher.launch")
        command = launcher_command(
            "trainer.train", ["config.yaml"], python="py", processes=processes, port=4321, gpus=gpus
        )
        assert command[:4] == ["py", "-u", "-m", "deepspeed.launcher.launch"]
        monkeypatch.setattr("sys.argv", command[3:])
        return launcher.parse_args()

    def test_no_value_of_the_recipe_travels_through_the_launcher(self, monkeypatch: pytest.MonkeyPatch):
        read = self.read(monkeypatch, 2)
        assert (read.training_script, read.training_script_args, read.module) == (
            "trainer.train",
            ["config.yaml"],
            True,
        )

    def test_ranks_meet_on_this_machine_at_the_port(self, monkeypatch: pytest.MonkeyPatch):
        read = self.read(monkeypatch, 3)
        assert (read.node_rank, read.master_addr, read.master_port) == (0, "127.0.0.1", 4321)
        assert json.loads(base64.urlsafe_b64decode(read.world_info)) == {"localhost": [0, 1, 2]}

    def test_chosen_gpus_are_named_one_by_one(self, monkeypatch: pytest.MonkeyPatch):
        read = self.read(monkeypatch, 2, "2", "3")
        assert json.loads(base64.urlsafe_b64decode(read.world_info)) == {"localhost": [2, 3]}


class TestEnvironment:
    def test_cores_are_shared_and_a_machine_without_gpu_says_so(self):
        made = launcher_environment({}, processes=3, gpus=0, cores=16, import_from=None)
        assert (made["OMP_NUM_THREADS"], made["DS_ACCELERATOR"]) == ("5", "cpu")
        assert made["TOKENIZERS_PARALLELISM"] == "false"

    def test_what_the_user_has_set_stands(self):
        own = {"OMP_NUM_THREADS": "7", "DS_ACCELERATOR": "xpu", "TOKENIZERS_PARALLELISM": "true"}
        assert own.items() <= launcher_environment(own, processes=1, gpus=0, cores=2, import_from=None).items()

    def test_a_gpu_machine_is_left_to_deepspeed(self):
        assert "DS_ACCELERATOR" not in launcher_environment({}, processes=1, gpus=1, cores=1, import_from=None)

    def test_a_folder_in_the_working_directory_does_not_hide_the_project(self, tmp_path: Path):
        (tmp_path / "launch").mkdir()
        (tmp_path / "launch" / "__init__.py").write_text("raise SystemExit('the wrong one')")
        environment = launcher_environment(os.environ, processes=1, gpus=0, cores=1, import_from=ROOT)
        found = subprocess.run(
            [sys.executable, "-m", "launch.processes.ranks"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr

    def test_more_import_paths_stay(self):
        made = launcher_environment({"PYTHONPATH": "/x"}, processes=1, gpus=0, cores=1, import_from=Path("/project"))
        assert made["PYTHONPATH"] == "/project:/x"

    def test_a_machine_without_a_gpu_driver_has_no_gpus(self, monkeypatch):
        monkeypatch.setattr(local, "_GPU_FILES", ("/nowhere/nvidia0",))
        assert local.count_gpus({}) == 0


class TestRecordedRanks:
    def test_a_process_is_found_by_its_record(self, ranks: Path):
        record_rank(ranks, 0)
        assert live_ranks(ranks) == [os.getpid()]

    def test_another_process_with_the_same_id_is_not_taken_for_a_rank(self, ranks: Path):
        record = {"pid": os.getpid(), "started": "1", "host": socket.gethostname()}
        (ranks / "rank0.pid").write_text(json.dumps(record))
        assert live_ranks(ranks) == []

    def test_ranks_of_other_hosts_are_left_alone(self, ranks: Path):
        record_rank(ranks, 0)
        record = json.loads((ranks / "rank0.pid").read_text())
        (ranks / "rank0.pid").write_text(json.dumps({**record, "host": "elsewhere"}))
        assert (live_ranks(ranks), recorded_ranks(ranks)) == ([], 1)

    def test_a_zombie_counts_as_gone(self, ranks: Path):
        code = (
            "import sys; from pathlib import Path; from launch.processes.ranks import record_rank\n"
            "record_rank(Path(sys.argv[1]), 0)"
        )
        child = subprocess.Popen([sys.executable, "-c", code, str(ranks)], cwd=ROOT)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert (live_ranks(ranks), recorded_ranks(ranks)) == ([], 1)
        child.wait()


class TestRun:
    def test_the_launchers_code_comes_back(self, ranks: Path):
        assert run("raise SystemExit(7)", ranks) == Outcome(7, stopped_early=False, killed=False)

    def test_it_lives_in_a_session_of_its_own(self, ranks: Path):
        assert run("import os; raise SystemExit(0 if os.getsid(0) == os.getpid() else 1)", ranks).returncode == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
    def test_any_stop_signal_reaches_each_rank_once_and_the_launcher_not_at_all(self, ranks: Path, number: int):
        code = BOTH_RANKS_UP + f"os.kill(duoflow, {int(number)}); raise SystemExit(max(rank.wait() for rank in ranks))"
        assert run(code, ranks, saving=0.2) == Outcome(75, stopped_early=False, killed=False)
        assert saved(ranks) == {"saved0": "1", "saved1": "1"}

    def test_the_handlers_of_before_are_put_back(self, ranks: Path):
        before = [signal.getsignal(number) for number in local.STOP_SIGNALS]
        run("", ranks)
        assert [signal.getsignal(number) for number in local.STOP_SIGNALS] == before

    def test_a_signal_that_was_ignored_stays_ignored(self, ranks: Path):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            outcome = run("import os, signal; os.kill(os.getppid(), signal.SIGHUP)", ranks)
        finally:
            signal.signal(signal.SIGHUP, before)
        assert outcome == Outcome(0, stopped_early=False, killed=False)

    def test_ranks_that_outlive_the_launcher_are_asked_to_save_and_waited_for(self, ranks: Path):
        outcome = run(BOTH_RANKS_UP + "os.kill(os.getpid(), signal.SIGKILL)", ranks, saving=0.5)
        assert outcome == Outcome(-signal.SIGKILL, stopped_early=False, killed=False)
        assert saved(ranks) == {"saved0": "1", "saved1": "1"}

    def test_ranks_that_do_not_leave_are_killed(self, ranks: Path):
        said: list[str] = []
        outcome = run(BOTH_RANKS_UP + "raise SystemExit(1)", ranks, saving=600, leave=0.3, said=said)
        assert outcome == Outcome(1, stopped_early=False, killed=True)
        assert (live_ranks(ranks), saved(ranks)) == ([], {})
        assert said == ["ranks did not leave within 0.3 s of the launcher: killing them"]

    def test_a_signal_before_the_ranks_are_up_ends_the_start(self, ranks: Path):
        code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
        assert run(code, ranks) == Outcome(-signal.SIGTERM, stopped_early=True, killed=False)

    def test_signals_soon_after_the_first_are_the_same_request(self, ranks: Path):
        twice = "os.kill(duoflow, signal.SIGINT); time.sleep(0.1); os.kill(duoflow, signal.SIGINT);"
        code = BOTH_RANKS_UP + twice + "raise SystemExit(max(rank.wait() for rank in ranks))"
        assert run(code, ranks, saving=0.4) == Outcome(75, stopped_early=False, killed=False)
        assert saved(ranks) == {"saved0": "1", "saved1": "1"}

    def test_another_ctrl_c_later_kills(self, ranks: Path, monkeypatch):
        monkeypatch.setattr(local, "SAME_REQUEST_SECONDS", 0.05)
        twice = "os.kill(duoflow, signal.SIGINT); time.sleep(0.3); os.kill(duoflow, signal.SIGINT);"
        outcome = run(BOTH_RANKS_UP + twice + "time.sleep(600)", ranks, saving=600)
        assert outcome == Outcome(-signal.SIGKILL, stopped_early=False, killed=True)
        assert (live_ranks(ranks), saved(ranks)) == ([], {})

    def test_records_of_an_earlier_start_are_forgotten(self, ranks: Path):
        record_rank(ranks, 0)  # this very process: it would be waited for, and killed
        assert run("", ranks, leave=0.0) == Outcome(0, stopped_early=False, killed=False)

    def test_what_the_ranks_leave_behind_is_cleared_away(self, ranks: Path):
        code = (
            "import subprocess, sys; from pathlib import Path\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "(Path(sys.argv[1]) / 'worker').write_text(str(child.pid))"
        )
        run(code, ranks)
        worker = Path(f"/proc/{(ranks / 'worker').read_text()}/stat")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and worker.exists() and ") Z " not in worker.read_text():
            time.sleep(0.01)
        assert not worker.exists() or ") Z " in worker.read_text()
