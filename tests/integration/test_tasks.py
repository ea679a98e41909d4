"""From a task's official files to its official scores: one run of each task, and one more that is killed and goes on.

nlvr2 is trained by `duoflow train`, as gqa is in test_end_to_end.py; a single process trains the others, each start in
a fork of it, for most of what `duoflow train` takes is imports.
"""

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LxmertModel

from model.towers.lxmert import dead_modules
from tests.distributed.launch import ROOT
from tests.distributed.training_runs import launched
from tests.distributed.training_worker import Case, Fault
from tests.official import Official
from tests.regions import shared_lxmert
from tests.runs import NO_COMPILER, LeftOver
from tests.task_corpora import CORPORA, TRAIN, VAL, task_recipe
from trainer.cli import main

pytestmark = pytest.mark.integration

STEPS = 6
LOSSES = {"vqa": {"answer": 1.0, "classify": 1.0}, "snli_ve": {}, "nlvr2": {}, "lxmert": {}}
"""Of each task that is trained here, once in one piece and once killed: all parts that it has. gqa's runs are killed in
tests/distributed."""
BY_COMMAND = "nlvr2"
KILLED = -9
IN_SECOND_EPOCH = Fault(function="trainer.training.loop:train_step", call=5, signal="SIGKILL")
"""Behind a checkpoint in the middle of the epoch."""
SCORED = {
    "vqa": {"accuracy": "val/accuracy"},
    "snli_ve": {"accuracy": "val/accuracy"},
    "nlvr2": {"accuracy": "val/accuracy", "consistency": "val/consistency"},
    "lxmert": {"accuracy": "val/accuracy"},
}
"""The official scores of a task, and what a validation calls them."""


@dataclass(frozen=True)
class Trained:
    """A task's run, and what it was trained and measured on."""

    task: str
    directory: Path
    val: Official
    code: int
    output: str
    half: tuple[int, ...]
    """How the starts of the run ended that was killed in between."""

    @property
    def run(self) -> LeftOver:
        return LeftOver(self.directory / "runs" / self.task)

    @property
    def resumed(self) -> LeftOver:
        return LeftOver(self.directory / "runs" / "half")

    @property
    def predictions(self) -> Path:
        """The file that was written last."""
        return max((self.run.path / "predictions").glob("val.*"), key=lambda path: path.stat().st_mtime_ns)

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


Runs = dict[str, Trained]
"""By task."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    home = tmp_path_factory.mktemp("tasks")
    val, recipes = {}, {}
    for task, losses in LOSSES.items():
        val[task], data = _shards(home / task, task)
        sections = {"losses": losses, "checkpoint": {"every_steps": 2}}
        recipes[task] = str(task_recipe(home / task / f"{task}.yaml", task, data, **sections))
    cases = [Case(name=task, recipe=recipe) for task, recipe in recipes.items() if task != BY_COMMAND]
    for task in LOSSES:
        half = {"recipe": recipes[task], "overrides": ["run.name=half"]}
        cases += [Case(name=f"{task} killed", fault=IN_SECOND_EPOCH, **half), Case(name=f"{task} again", **half)]
    done = launched(home, cases, processes=1)
    codes = {name: code for name, (code,) in done.codes.items()}
    output = dict.fromkeys(LOSSES, done.output)
    codes[BY_COMMAND], output[BY_COMMAND] = _train(recipes[BY_COMMAND])
    halves = {task: (codes[f"{task} killed"], codes[f"{task} again"]) for task in LOSSES}
    return {task: Trained(task, home / task, val[task], codes[task], output[task], halves[task]) for task in LOSSES}


@pytest.fixture(params=LOSSES)
def trained(request: pytest.FixtureRequest, runs: Runs) -> Trained:
    return runs[request.param]


def _shards(directory: Path, task: str) -> tuple[Official, dict[str, str]]:
    """The official files of the validation split, and the `data` section of both."""
    files, data = {}, {}
    for seed, (split, num_samples) in enumerate((("train", TRAIN), ("val", VAL))):
        whole = split == "val"
        files[split] = CORPORA[task](directory / split, num_samples=num_samples, seed=seed, whole=whole)
        data[split] = str(directory / "shards" / split)
        assert main(files[split].words(Path(data[split]))) == 0
    return files["val"], data


def _train(recipe: str) -> tuple[int, str]:
    """Exit code and output of `duoflow train`."""
    environment = os.environ | NO_COMPILER | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trainer.cli", "train", recipe]
    done = subprocess.run(
        command, cwd=Path(recipe).parent, env=environment, text=True, capture_output=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_it_trains_to_its_end_and_measures_what_the_task_measures(trained: Trained):
    assert trained.code == 0, trained.output[-3000:]
    assert trained.run.status["state"] == "done"
    assert list(trained.run.losses) == list(range(1, STEPS + 1))
    assert all(0 < value < 100 for losses in trained.run.losses.values() for value in losses.values())
    assert list(trained.run.validations) == [STEPS // 2, STEPS]
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


def test_vqas_predictions_name_questions_by_their_numbers(runs: Runs):
    trained = runs["vqa"]
    rows = json.loads(trained.predictions.read_text())
    asked = json.loads(trained.val.questions[0].read_text())["questions"]
    assert trained.predictions.name == "val.json"
    assert [row["question_id"] for row in rows] == sorted(question["question_id"] for question in asked)
    assert all(row.keys() == {"question_id", "answer"} and isinstance(row["answer"], str) for row in rows)


def test_snli_ves_predictions_name_a_label_for_every_pair(runs: Runs):
    trained = runs["snli_ve"]
    pairs = [json.loads(line)["pairID"] for line in trained.val.questions[0].read_text().splitlines()]
    rows = json.loads(trained.predictions.read_text())
    assert [row["pairID"] for row in rows] == sorted(pairs)
    assert {row["prediction"] for row in rows} <= {"entailment", "neutral", "contradiction"}


def test_an_export_over_regions_is_a_checkpoint_that_transformers_reads(runs: Runs):
    """With the dead tensors as they were, and the others as they were trained."""
    directory = runs["lxmert"].run.directory.export / "lxmert"
    model, report = LxmertModel.from_pretrained(directory, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    start = LxmertModel.from_pretrained(shared_lxmert()).state_dict()
    dead = dead_modules(model.config)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith(dead), name


def test_nlvr2s_predictions_are_lines_of_an_identifier_and_true_or_false(runs: Runs):
    trained = runs["nlvr2"]
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
def test_vqas_answers_come_from_whichever_part_is_asked(runs: Runs, by: str):
    trained = runs["vqa"]
    metrics = trained.evaluate(f"answers.by={by}", *(["answers.candidates=3"] if by == "rank" else []))
    assert trained.predictions.name == ("val.json" if by == "generate" else f"val.{by}.json")
    said = {row["answer"] for row in json.loads(trained.predictions.read_text())}
    if by != "generate":
        assert said <= set(trained.run.exported["classes"])
    assert trained.score() == {"accuracy": pytest.approx(metrics["val/accuracy"], rel=1e-12)}
    for name in ("val/answer_loss", "val/classify_loss", "val/loss"):
        assert metrics[name] == trained.best[name]


def test_other_images_are_another_sample_with_all_of_its_images(runs: Runs, capsys):
    trained = runs["nlvr2"]
    before = trained.predictions.read_bytes()
    words = ["evaluate", str(trained.run.path), "--split", "val", "--images", "shuffled"]
    assert main(words) == 0
    assert "val/consistency" in capsys.readouterr().out
    assert trained.predictions.read_bytes() == before


@pytest.mark.parametrize("task", LOSSES)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(runs: Runs, task: str):
    trained, whole, half = runs[task], runs[task].run, runs[task].resumed
    assert trained.half == (KILLED, 0)
    assert half.bits("last") == whole.bits("last")
    assert half.bits("best") == whole.bits("best")
    assert half.records == whole.records
    assert half.progress("last") == whole.progress("last")
    files = sorted(path.relative_to(whole.path) for path in whole.directory.export.rglob("*.safetensors"))
    assert files
    for name in files:  # what a header says beside the tensors has no order
        expected, found = load_file(whole.path / name), load_file(half.path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
