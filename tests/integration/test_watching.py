"""Runs without a terminal, as their user meets them: detached, followed, killed, adopted, stopped, started again.

Two ranks each. What is killed is killed with SIGKILL, by the process ids that the run itself has recorded.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.processes.ranks import live_ranks, read_attendant, read_records, send_exactly
from tests.distributed.launch import ROOT
from tests.runs import NO_COMPILER, LeftOver, write_recipe, write_shards

pytestmark = pytest.mark.integration

TIMEOUT_SECONDS = 1200
EVERY_STEPS = 5
"""Optimizer steps between checkpoints."""


class Place:
    """A recipe, and the commands that a user gives for its runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe = write_recipe(
            directory / "tiny.yaml",
            {"train": write_shards(directory)["train"], "val": None},
            engine={"processes": 2, "timeout_seconds": 300},
            checkpoint={"every_steps": EVERY_STEPS},
            limits={"epochs": 4},
        )

    def run(self, name: str) -> LeftOver:
        return LeftOver(self.directory / "runs" / name)

    def start(self, *arguments: str, **options: object) -> subprocess.Popen:
        environment = os.environ | NO_COMPILER | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "trainer.cli", *arguments],
            cwd=self.directory,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def duoflow(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a command, and what it said."""
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, output

    def train(self, name: str, *arguments: str) -> tuple[int, str]:
        return self.duoflow("train", str(self.recipe), f"run.name={name}", *arguments)

    def clear(self) -> None:
        """End what a failed test has left running."""
        for ranks in (self.directory / "runs").glob("*/ranks"):
            attendant = read_attendant(ranks)
            processes = [record.process for record in read_records(ranks)]
            send_exactly(signal.SIGKILL, processes + ([] if attendant is None else [attendant.process]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("watching"))
    yield made
    made.clear()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_SECONDS} s: {what}"
        time.sleep(0.05)


def step_of(run: LeftOver) -> int:
    """The last step that a run has recorded."""
    lines = run.directory.metrics.read_text().splitlines() if run.directory.metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def kill(run: LeftOver, rank: int) -> None:
    process = next(record.process for record in read_records(run.directory.ranks) if record.rank == rank)
    assert send_exactly(signal.SIGKILL, [process])


def test_a_killed_rank_is_named_and_the_run_goes_on_by_itself_to_the_same_bits(place: Place):
    code, output = place.train("unbroken")
    assert code == 0, output
    run = place.run("broken")
    code, output = place.train("broken", "--detach", "--restarts", "2")
    assert code == 0, output
    assert "duoflow attach" in output
    wait_for(lambda: step_of(run) > EVERY_STEPS + 1, "a step behind a checkpoint")
    kill(run, rank=1)
    code, output = place.duoflow("attach", str(run.path))
    assert code == 0, output
    assert "starting again in 2 s (restart 1 of 2)" in output
    assert "rank 1 on" in output
    assert "signal 9 (SIGKILL)" in output
    assert "done at step 20 (exit code 0)" in output
    assert run.status["state"] == "done"
    assert "Traceback (most recent" not in run.directory.console.read_text()
    (restart,) = map(json.loads, run.directory.restarts.read_text().splitlines())
    assert restart["exit_code"] == 1
    assert "rank 1 on" in restart["message"]
    assert run.bits("last") == place.run("unbroken").bits("last")
    assert run.losses == place.run("unbroken").losses


def test_a_mistake_is_one_line_before_anything_is_detached(place: Place):
    code, output = place.train("wrong", "--detach", "data.train=nowhere")
    assert code == 2
    assert len(output.splitlines()) == 1
    assert "data.train: nowhere" in output
    assert not place.run("wrong").path.exists()


def test_ranks_whose_starter_was_killed_are_found_adopted_and_stopped(place: Place):
    run = place.run("orphaned")
    # Slow enough to be met: an epoch of 5 steps takes about as many tenths of a second.
    code, output = place.train("orphaned", "--detach", "limits.epochs=100000")
    assert code == 0, output
    ranks = run.directory.ranks
    wait_for(lambda: step_of(run) > 1, "a step")
    attendant = read_attendant(ranks)
    assert attendant is not None
    assert json.loads(place.duoflow("status", str(run.path), "--json")[1])["state"] == "running"
    launcher = _children(attendant.process.pid)
    send_exactly(signal.SIGKILL, [attendant.process])
    for pid in launcher:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not _runs(attendant.process.pid), "its starter's end")

    code, output = place.duoflow("status", str(run.path.parent))
    assert code == 0
    line = next(line for line in output.splitlines() if line.startswith("orphaned "))
    assert line.split()[1] == "orphaned"
    code, output = place.train("orphaned", "limits.epochs=100000")
    assert code == 2, output
    assert "are training here; stop them (`duoflow stop" in output

    watcher = place.start("attach", str(run.path))
    wait_for(lambda: (now := read_attendant(ranks)) is not None and now.process.pid == watcher.pid, "an adoption")
    assert len(live_ranks(ranks)) == 2
    code, output = place.duoflow("stop", str(run.path), "--wait", "600")
    assert code == 0, output
    assert "stopped at step" in output
    said, _ = watcher.communicate(timeout=TIMEOUT_SECONDS)
    assert watcher.returncode == run.status["exit_code"] == 75, said
    assert "this process takes its place" in said
    assert live_ranks(ranks) == []
    assert read_attendant(ranks) is None

    code, output = place.duoflow("stop", str(run.path), "--wait", "600")
    assert code == 0
    assert "it does not run, so there is nothing to stop" in output


def _children(pid: int) -> list[int]:
    """Process ids of what a process has started: of an attendant, the launcher."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
