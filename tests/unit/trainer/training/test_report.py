"""What a console says beside the losses: the best so far, when a run would stop, what it leaves."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.config import load_config
from trainer.config.set_by_recipe import set_by_recipe
from trainer.reporting.progress import StepReport, render_line
from trainer.run_directory import RunDirectory
from trainer.tasks import task_named
from trainer.training.early_stopping import EarlyStopping
from trainer.training.milestones import Milestones
from trainer.training.report import negatives_note, stops_at
from trainer.training.state import Told, TrainState
from trainer.training.summary import summary


def milestones(every: int | None, total: int = 100) -> Milestones:
    return Milestones(steps_per_epoch=10, total_steps=total, validate_every=every, save_every=None)


def state_at(step: int, scores: list[float], patience: int | None) -> TrainState:
    state = TrainState(early_stopping=EarlyStopping(patience=patience), sum_names=())
    state.global_step = state.validated_step = step
    for score in scores:
        state.early_stopping.observe(score)
    return state


@pytest.mark.parametrize(
    ("step", "scores", "patience", "expected"),
    [
        (0, [], 3, 30),
        (20, [0.1, 0.2], 3, 50),
        (40, [0.1, 0.2, 0.2, 0.1], 3, 50),
        (20, [0.1, 0.2], None, None),
        (80, [0.1, 0.2], 3, None),
    ],
)
def test_a_run_knows_when_it_stops_without_progress(step: int, scores: list[float], patience, expected):
    run = SimpleNamespace(milestones=milestones(10))
    assert stops_at(run, state_at(step, scores, patience)) == expected


@pytest.mark.parametrize(("step", "count", "expected"), [(0, 1, 30), (29, 1, 30), (30, 1, 60), (61, 9, 100)])
def test_validations_behind_a_step(step: int, count: int, expected: int):
    assert milestones(30).validation_after(step, count) == expected
    assert milestones(None).validation_after(step, count) == 100


def test_the_line_has_the_best_with_its_age_and_the_step_of_an_early_stop():
    known = {"total_steps": 100, "epoch": 5, "epochs": 10, "loss": 1.0, "learning_rate": 1e-3}
    shown = render_line(StepReport(step=45, **known, best=0.8421, best_step=30, stops_at=60, eta_seconds=70))
    assert shown.endswith("best 0.8421, 15 steps ago left 1 min 10 s (stops at step 60 without progress)")
    assert "best" not in render_line(StepReport(step=45, **known))


@pytest.mark.parametrize(
    ("missing", "kinds", "said"),
    [
        (497, ("answer",), "matching learns from the other 117; losses.negatives=[question] takes"),
        (614, ("answer", "question"), "learns nothing; with the same questions for every image there are none"),
    ],
)
def test_missing_negatives_are_explained(missing: int, kinds: tuple[str, ...], said: str):
    note = negatives_note(missing, 614, kinds)
    assert note.startswith(f"{missing} of 614 negatives have weight 0: the data offers none of the kind answer")
    assert said in note


def test_what_was_told_is_told_once():
    told = Told()
    assert [told.first(what) for what in ("a", "b", "a")] == [True, True, False]


def test_what_a_recipe_sets_leaves_out_its_place_and_what_it_records(tmp_path: Path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(json.dumps({"data": {"train": "shards"}, "optim": {"lr": 0.01}, "logging": {"pictures": 0}}))
    found = set_by_recipe(load_config(recipe, ["losses.negatives=[question]"]))
    assert found["data.train"] == "shards"
    assert found["optim.lr"] == 0.01
    assert "question" in found["losses.negatives"]
    assert not [name for name in found if name.startswith(("logging.", "run."))]
    assert "optim.weight_decay" not in found


def test_the_table_at_the_end_names_the_export_and_every_file_that_is_there(tmp_path: Path, monkeypatch):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.metrics.write_text("")
    directory.tensorboard.mkdir()
    exported = {"step": 20, "metrics": {"val/accuracy": 0.75, "val/loss": 1.5, "val/count": 9}}
    monkeypatch.setattr("trainer.training.summary.read_export", lambda _: exported)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(json.dumps({"data": {"train": "shards"}}))
    run = SimpleNamespace(
        directory=directory, config=load_config(recipe), task=task_named("gqa"), validation=(None, None)
    )
    state = state_at(40, [0.1], None)
    state.best_step = 20
    lines = summary(run, state)
    assert lines[0].split(maxsplit=1) == ["exported", "step 20 of 40: its validation was the best"]
    rows = dict(line.split(maxsplit=1) for line in lines)
    assert (rows["val/accuracy"], rows["val/loss"]) == ("0.7500", "1.5000")
    assert rows["metrics"] == str(directory.metrics)
    assert rows["curves"] == f"tensorboard --logdir {directory.path}"
    assert "predictions" not in rows
    assert "val/count" not in rows
