"""A run that was killed goes on bit for bit: one process trains all of them, each start in a fork of it.

gqa's runs are killed in tests/distributed; a run of snli_ve is one of nlvr2 with a single image.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.launch import launch_alone
from tests.distributed.training_worker import Case, Fault, read_codes, write_cases
from tests.runs import NO_COMPILER, LeftOver
from tests.task_corpora import task_recipe, write_task

pytestmark = pytest.mark.integration

KILLED = -9
IN_SECOND_EPOCH = Fault(function="trainer.training.loop:train_step", call=5, signal="SIGKILL")
"""Behind a checkpoint in the middle of the epoch."""
LOSSES = {"vqa": {"answer": 1.0, "classify": 0.5}, "nlvr2": {}}
"""Of each task that is killed here: all parts that it has."""


@dataclass(frozen=True)
class Starts:
    """What they left behind."""

    directory: Path
    codes: dict[str, list[int]]

    def run(self, task: str, name: str) -> LeftOver:
        return LeftOver(self.directory / task / "runs" / name)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Starts:
    directory = tmp_path_factory.mktemp("resume")
    cases = []
    for task, losses in LOSSES.items():
        home = directory / task
        sections = {"losses": losses, "checkpoint": {"every_steps": 2}}
        recipe = str(task_recipe(home / "whole.yaml", task, write_task(home, task), **sections))
        cases.append(Case(name=f"{task} whole", recipe=recipe))
        cases.append(Case(name=f"{task} killed", recipe=recipe, overrides=["run.name=half"], fault=IN_SECOND_EPOCH))
        cases.append(Case(name=f"{task} again", recipe=recipe, overrides=["run.name=half"]))
    write_cases(directory, cases)
    done = launch_alone("tests.distributed.training_worker", str(directory), env=NO_COMPILER)
    assert done.returncode == 0, done.stdout[-3000:]
    return Starts(directory, read_codes(directory, 1))


@pytest.mark.parametrize("task", LOSSES)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(starts: Starts, task: str):
    assert [starts.codes[f"{task} {name}"] for name in ("whole", "killed", "again")] == [[0], [KILLED], [0]]
    whole, half = starts.run(task, "whole"), starts.run(task, "half")
    assert len(whole.losses) == 6
    assert half.bits("last") == whole.bits("last")
    assert half.bits("best") == whole.bits("best")
    assert half.records == whole.records
    assert half.progress("last") == whole.progress("last")
    exported = [
        {
            path.relative_to(run.directory.export): path.read_bytes()
            for path in run.directory.export.rglob("*")
            if path.suffix == ".safetensors"
        }
        for run in (whole, half)
    ]
    assert exported[0] == exported[1] != {}
    predictions = [
        {path.name: path.read_bytes() for path in (run.path / "predictions").iterdir()} for run in (whole, half)
    ]
    assert predictions[0] == predictions[1] != {}
