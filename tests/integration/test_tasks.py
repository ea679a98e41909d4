"""From a task's official files to its official scores by the `duoflow` command, one training for each task."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import ROOT
from tests.runs import NO_COMPILER, LeftOver
from tests.task_corpora import CORPORA, TRAIN, VAL, Official, task_recipe
from trainer.cli import main

pytestmark = pytest.mark.integration

STEPS = 4
TASKS = ("vqa", "snli_ve", "nlvr2")
"""gqa's way is in test_end_to_end.py."""
LOSSES = {"vqa": {"answer": 1.0, "classify": 1.0}}
SCORED = {
    "vqa": {"accuracy": "val/accuracy"},
    "snli_ve": {"accuracy": "val/accuracy"},
    "nlvr2": {"accuracy": "val/accuracy", "consistency": "val/consistency"},
}
"""The official scores of a task, and what a validation calls them."""


@dataclass(frozen=True)
class Trained:
    """A run, and what it was trained and measured on."""

    task: str
    directory: Path
    val: Official
    code: int
    output: str

    @property
    def run(self) -> LeftOver:
        return LeftOver(self.directory / "runs" / self.task)

    @property
    def predictions(self) -> Path:
        (path,) = (self.run.path / "predictions").glob("val.*")
        return path

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the validation whose weights were exported."""
        return self.run.validations[self.run.exported["step"]]

    def evaluate(self, *overrides: str) -> dict[str, Any]:
        out = self.directory / "scores.json"
        assert main(["evaluate", str(self.run.path), *overrides, "--split", "val", "--json", str(out)]) == 0
        return json.loads(out.read_text())["metrics"]

    def score(self) -> dict[str, Any]:
        """The official scores of the predictions that were written last, parts of 1."""
        out = self.directory / "official.json"
        words = ["score", "--task", self.task, "--questions", str(self.val.questions[0]), "--json", str(out)]
        words += [word for path in self.val.annotations for word in ("--annotations", str(path))]
        assert main([*words, "--predictions", str(self.predictions)]) == 0
        scores, whole = json.loads(out.read_text())["scores"], 100 if self.task == "vqa" else 1
        return {name: scores[name] / whole for name in SCORED[self.task]}


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """What a task's training left behind."""
    return cache(lambda task: _train(tmp_path_factory.mktemp(task), task))


@pytest.fixture(params=TASKS)
def trained(request: pytest.FixtureRequest, trained_on: Callable[[str], Trained]) -> Trained:
    return trained_on(request.param)


def _train(directory: Path, task: str) -> Trained:
    files, data = {}, {}
    for seed, (split, num_samples) in enumerate((("train", TRAIN), ("val", VAL))):
        whole = split == "val"
        files[split] = CORPORA[task](directory / split, num_samples=num_samples, seed=seed, whole=whole)
        data[split] = str(directory / "shards" / split)
        assert main(files[split].words(Path(data[split]))) == 0
    sections = {"losses": LOSSES.get(task, {}), "limits": {"max_steps": STEPS}, "validate_every": {"steps": 2}}
    recipe = task_recipe(directory / f"{task}.yaml", task, data, **sections)
    environment = os.environ | NO_COMPILER | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trainer.cli", "train", str(recipe)]
    done = subprocess.run(command, cwd=directory, env=environment, text=True, capture_output=True, check=False)
    return Trained(task, directory, files["val"], done.returncode, done.stdout + done.stderr)


def test_it_trains_to_its_end_and_measures_what_the_task_measures(trained: Trained):
    assert trained.code == 0, trained.output[-3000:]
    assert trained.run.status["state"] == "done"
    assert list(trained.run.losses) == list(range(1, STEPS + 1))
    assert all(0 < value < 100 for losses in trained.run.losses.values() for value in losses.values())
    assert list(trained.run.validations) == [2, STEPS]
    for metrics in trained.run.validations.values():
        assert {*SCORED[trained.task].values(), "val/loss"} <= metrics.keys()
    assert "accuracy" in trained.output


def test_official_scores_of_the_predictions_are_those_of_the_validation(trained: Trained):
    assert trained.score() == {
        name: pytest.approx(trained.best[metric], rel=1e-12) for name, metric in SCORED[trained.task].items()
    }


def test_an_evaluation_of_the_export_is_the_validation_of_its_step_bit_for_bit(trained: Trained):
    validated = trained.predictions.read_bytes()
    assert trained.evaluate().items() >= {n: v for n, v in trained.best.items() if not n.endswith("count")}.items()
    assert trained.predictions.read_bytes() == validated


def test_vqas_predictions_name_questions_by_their_numbers(trained_on: Callable[[str], Trained]):
    trained = trained_on("vqa")
    rows = json.loads(trained.predictions.read_text())
    asked = json.loads(trained.val.questions[0].read_text())["questions"]
    assert trained.predictions.name == "val.json"
    assert [row["question_id"] for row in rows] == sorted(question["question_id"] for question in asked)
    assert all(row.keys() == {"question_id", "answer"} and isinstance(row["answer"], str) for row in rows)


def test_snli_ves_predictions_name_a_label_for_every_pair(trained_on: Callable[[str], Trained]):
    trained = trained_on("snli_ve")
    pairs = [json.loads(line)["pairID"] for line in trained.val.questions[0].read_text().splitlines()]
    rows = json.loads(trained.predictions.read_text())
    assert [row["pairID"] for row in rows] == sorted(pairs)
    assert {row["prediction"] for row in rows} <= {"entailment", "neutral", "contradiction"}


def test_nlvr2s_predictions_are_lines_of_an_identifier_and_true_or_false(trained_on: Callable[[str], Trained]):
    trained = trained_on("nlvr2")
    names = [json.loads(line)["identifier"] for line in trained.val.questions[0].read_text().splitlines()]
    text = trained.predictions.read_bytes().decode("ascii")
    assert trained.predictions.name == "val.csv"
    assert text.endswith("\n")
    assert "\r" not in text
    rows = list(csv.reader(text.splitlines()))
    assert [row[0] for row in rows] == sorted(names)
    assert {row[1] for row in rows} <= {"True", "False"}
    assert text.splitlines()[0] == ",".join(rows[0]), "without quotes and blanks"


@pytest.mark.parametrize("by", ["classify", "rank", "generate"])
def test_vqas_answers_come_from_whichever_part_is_asked(trained_on: Callable[[str], Trained], by: str):
    trained = trained_on("vqa")
    metrics = trained.evaluate(f"answers.by={by}", *(["answers.candidates=3"] if by == "rank" else []))
    said = {row["answer"] for row in json.loads(trained.predictions.read_text())}
    if by != "generate":
        assert said <= set(trained.run.exported["classes"])
    assert trained.score() == {"accuracy": pytest.approx(metrics["val/accuracy"], rel=1e-12)}
    for name in ("val/answer_loss", "val/classify_loss", "val/loss"):
        assert metrics[name] == trained.best[name]


def test_other_images_are_another_sample_with_all_of_its_images(trained_on: Callable[[str], Trained], capsys):
    trained = trained_on("nlvr2")
    before = trained.predictions.read_bytes()
    words = ["evaluate", str(trained.run.path), "--split", "val", "--images", "shuffled"]
    assert main(words) == 0
    assert "val/consistency" in capsys.readouterr().out
    assert trained.predictions.read_bytes() == before
