"""`duoflow runs`: a table of what was trained, and where two runs differ."""

import json
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.commands.runs import compare, training_seconds
from trainer.config import load_config
from trainer.run_directory import RunDirectory, Status


@pytest.fixture
def runs(tmp_path: Path, monkeypatch) -> Path:
    """`fast`, done, and `slow`, which was stopped before its first validation, with another rate and another model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("model: {freeze: []}\n")
    made = {
        "fast": (["optim.lr=0.001"], Status(state="done", exit_code=0, global_step=20, epoch=2)),
        "slow": (["optim.lr=0.0001", "model.second_stream=none"], Status(state="stopped", exit_code=75, global_step=5)),
    }
    for name, (overrides, status) in made.items():
        run = RunDirectory(tmp_path / "runs" / name)
        run.create()
        run.write_config(load_config("tiny.yaml", [*overrides, f"run.name={name}"]))
        run.write_status(status)
    lines = [
        {"step": 10, "time": 100.0, "progress/epoch": 1.0},
        {"step": 10, "time": 110.0, "val/accuracy": 0.75, "val/loss": 0.5, "val/binary": 0.8},
        {"step": 20, "time": 5_000.0, "val/accuracy": 0.5, "val/loss": 0.9},
        {"step": 20, "time": 5_020.0, "train/loss": float("nan")},
    ]
    (tmp_path / "runs/fast/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "runs"


@pytest.mark.usefixtures("runs")
def test_a_line_for_each_run(capsys):
    assert main(["runs"]) == 0
    head, fast, slow = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert fast.split() == ["fast", "done", "20", "of", "100", "val/accuracy", "0.7500", "10", "30", "s", "gqa"]
    assert slow.split() == ["slow", "stopped", "5", "gqa"]


def test_json_has_numbers(runs: Path, capsys):
    assert main(["runs", "--directory", str(runs), "--json"]) == 0
    fast, slow = json.loads(capsys.readouterr().out)
    assert fast["best"] == {"metric": "val/accuracy", "value": 0.75, "step": 10}
    assert fast["training_seconds"] == 30.0
    assert (slow["best"], slow["training_seconds"]) == (None, None)


def test_a_damaged_run_is_in_its_line_and_the_others_in_theirs(runs: Path, capsys):
    (runs / "slow" / "status.json").write_text("{")
    assert main(["runs"]) == 0
    assert "damaged" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0


def test_where_there_are_none(tmp_path: Path, capsys):
    assert main(["runs", "--directory", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: no runs\n"
    assert main(["runs", "--directory", str(tmp_path / "none")]) == 2


def test_two_runs_are_held_against_each_other(runs: Path, capsys):
    recipe, metrics = compare(runs / "fast", runs / "slow")
    differences = {pair.name: (pair.first, pair.second) for pair in recipe}
    assert differences == {
        "run.name": ("fast", "slow"),
        "optim.lr": (0.001, 0.0001),
        "model.second_stream": ("efficient_sam", "none"),
    }
    values = {pair.name: (pair.first, pair.second) for pair in metrics}
    assert values["val/accuracy"] == (0.75, None)
    assert values["val/loss"] == (0.5, None), "of the best validation, not of the last"
    assert values["best at step"] == (10, None)
    assert values["step"] == (20, 5)
    assert main(["runs", "compare", str(runs / "fast"), str(runs / "slow")]) == 0
    shown = capsys.readouterr().out
    assert "0.7500" in shown
    assert main(["runs", "compare", str(runs / "fast"), str(runs / "slow"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {pair["name"] for pair in document["recipe"]} == set(differences)


def test_a_run_equals_itself(runs: Path, capsys):
    assert main(["runs", "compare", str(runs / "fast"), str(runs / "fast")]) == 0
    assert capsys.readouterr().out.startswith("the recipes are equal\n")


def test_what_is_no_run_is_named(runs: Path, capsys):
    assert main(["runs", "compare", str(runs / "fast"), str(runs / "none")]) == 2
    assert "none: is no directory; expected the directory of a run" in capsys.readouterr().err


def test_time_is_that_of_training_alone():
    assert training_seconds([]) is None
    assert training_seconds([{"time": 1.0}]) is None
    lines = [{"time": moment} for moment in (0.0, 10.0, 10_000.0, 10_005.0)]
    assert training_seconds(lines) == 15.0, "a night between two starts is none of it"
