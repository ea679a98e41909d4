"""The whole way by the `duoflow` command: scenes, shards, two ranks that are stopped and started again, scores.

Three processes of the command serve all tests: a training that gets a signal, the same command again, an evaluation.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.processes.ranks import live_ranks
from tests.distributed.launch import ROOT
from tests.models import EFFICIENT_SAM, FUSION, SCRATCH
from tests.runs import NO_COMPILER, LeftOver
from trainer.cli import main

pytestmark = pytest.mark.integration

SPLITS = ("train", "val", "testdev")
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Scenes:
    """What was rendered, packed and written before any training."""

    directory: Path
    recipe: Path

    @property
    def run(self) -> LeftOver:
        return LeftOver(self.directory / "runs" / "tiny")

    def questions(self, split: str) -> dict[str, dict[str, Any]]:
        return json.loads((self.directory / "scenes" / f"{split}_balanced_questions.json").read_text())


@dataclass(frozen=True)
class Ended:
    """How a process of the command ended."""

    code: int
    output: str
    status: Mapping[str, Any]
    """Of the run, right after it."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    directory = tmp_path_factory.mktemp("end_to_end")
    made = Scenes(directory, directory / "tiny.yaml")
    rendered = directory / "scenes"
    assert main(["scenes", str(rendered), "--images", "50", "--seed", "1"]) == 0
    for split in SPLITS:
        questions, out = rendered / f"{split}_balanced_questions.json", directory / "shards" / split
        where = ["--questions", str(questions), "--images", str(rendered / "images"), "--out", str(out)]
        assert main(["shards", "build", "--format", "gqa", *where, "--workers", "1"]) == 0
        assert main(["shards", "verify", str(out)]) == 0
    tree = {
        "run": {"directory": str(directory / "runs")},
        "data": {split: str(directory / "shards" / split) for split in SPLITS}
        | {"questions_per_visit": 7, "max_question_tokens": 24, "max_answer_tokens": 6, "workers": 1},
        "model": {
            "scratch": SCRATCH | {"vision_layers": 1, "text_layers": 1, "vocab_size": 200},
            "efficient_sam": EFFICIENT_SAM,
            "fusion": FUSION,
            "freeze": [],
        },
        "batch": {"visits": 4, "micro_visits": 2},
        "optim": {"lr": 1e-3, "warmup_steps": 5},
        "engine": {"processes": 2},
        "validate_every": {"epochs": 3},
        "limits": {"epochs": 6},
        "logging": {"every_steps": 1},
    }
    made.recipe.write_text(json.dumps(tree))
    return made


@pytest.fixture(scope="module")
def interrupted(scenes: Scenes) -> Ended:
    """A training that gets SIGTERM as soon as its second step is recorded."""
    return _duoflow(scenes, "train", str(scenes.recipe), stop_behind_step=2)


@pytest.fixture(scope="module")
def trained(scenes: Scenes, interrupted: Ended) -> Ended:
    """The same command again."""
    assert interrupted.code == 75, interrupted.output[-3000:]
    return _duoflow(scenes, "train", str(scenes.recipe))


@pytest.fixture(scope="module")
def evaluated(scenes: Scenes, trained: Ended) -> Ended:
    assert trained.code == 0, trained.output[-3000:]
    scores = scenes.directory / "scores.json"
    return _duoflow(scenes, "evaluate", str(scenes.run.path), "--split", "testdev", "--json", str(scores))


def _duoflow(scenes: Scenes, *arguments: str, stop_behind_step: int | None = None) -> Ended:
    """Run the command in a process group of its own, from a folder that is not the project's."""
    environment = os.environ | NO_COMPILER | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *arguments],
        cwd=scenes.directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        if stop_behind_step is not None:
            _wait_for_step(scenes.run, stop_behind_step, process)
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Ended(process.returncode, output, scenes.run.status)


def _wait_for_step(run: LeftOver, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not run.directory.metrics.exists() or step not in run.losses:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, f"no step {step} in time"
        time.sleep(0.05)


def test_a_signal_to_the_command_stops_both_ranks_and_saves(interrupted: Ended):
    assert interrupted.code == interrupted.status["exit_code"] == 75
    assert interrupted.status["state"] == "stopped"
    assert interrupted.status["global_step"] >= 2
    assert "run the same command again" in interrupted.output
    assert "Traceback" not in interrupted.output


def test_the_same_command_goes_on_to_the_end(scenes: Scenes, interrupted: Ended, trained: Ended):
    step, run = interrupted.status["global_step"], scenes.run
    assert trained.code == 0
    assert trained.status["state"] == "done"
    assert f"resumed from {run.directory.checkpoints}/step{step:08d} at step {step}" in trained.output
    assert list(run.losses) == list(range(1, trained.status["global_step"] + 1))
    assert len(run.validations) == 2
    assert not live_ranks(run.directory.ranks)


def test_a_run_leaves_everything_that_describes_it(scenes: Scenes, trained: Ended):
    assert trained.code == 0
    directory = scenes.run.directory
    for path in (directory.config, directory.environment, directory.metrics, directory.export / "README.md"):
        assert path.stat().st_size > 0, path
    assert all(directory.rank_log(rank).stat().st_size > 0 for rank in (0, 1))
    assert list(directory.tensorboard.glob("events.out.tfevents.*"))
    environment = json.loads(directory.environment.read_text())
    assert (environment["hosts"], environment["devices"]) == ([os.uname().nodename], ["cpu", "cpu"])
    assert not list(directory.path.rglob("*.partial"))


def test_a_finished_run_says_so(scenes: Scenes, trained: Ended, capsys: pytest.CaptureFixture):
    before = scenes.run.directory.metrics.read_bytes()
    assert main(["train", str(scenes.recipe)]) == 0
    assert "is finished at step" in capsys.readouterr().out
    assert scenes.run.directory.metrics.read_bytes() == before
    assert scenes.run.status == trained.status


def test_predictions_are_a_gqa_submission_with_every_question_once(scenes: Scenes, evaluated: Ended):
    assert evaluated.code == 0, evaluated.output[-3000:]
    rows = json.loads(scenes.run.directory.predictions("testdev").read_text())
    assert all(row.keys() == {"questionId", "prediction"} for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())
    asked = scenes.questions("testdev")
    assert len(rows) == len(asked) > 50
    assert {row["questionId"] for row in rows} == asked.keys()


def test_scores_are_those_of_the_predictions(scenes: Scenes, evaluated: Ended):
    scores = json.loads((scenes.directory / "scores.json").read_text())
    rows = json.loads(scenes.run.directory.predictions("testdev").read_text())
    asked = scenes.questions("testdev")
    hits = sum(asked[row["questionId"]]["answer"] == row["prediction"] for row in rows)
    assert scores["metrics"]["testdev/accuracy"] == hits / len(asked)
    assert scores["counts"]["testdev/count"] == len(asked)
    assert f"of {len(asked)}" in evaluated.output
