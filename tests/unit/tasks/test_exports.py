"""An export says to a split what the trained model says, heads and lists of answers included."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import duoflow
from shards.config_base import Section
from shards.errors import UserError
from tests.runs import evaluate_run, weights
from tests.unit.tasks.trials import Choice, Trial, choices
from trainer.cli import main
from trainer.export.card import HEADS
from trainer.export.manifest import seal
from trainer.export.write import export_model
from trainer.run_directory import RunDirectory

Trials = Callable[[Choice], Trial]

BOTH = Choice("vqa", ("losses.classify=1",))
PLAIN = Choice("vqa", ())


def exported(trial: Trial, directory: Path, **changes: Section) -> Path:
    """A run directory with the weights of a trial, as if it had trained them; `changes` are sections of its recipe."""
    place = trial.config.run.model_copy(update={"directory": str(directory), "name": "run"})
    config = trial.config.model_copy(update={"run": place, **changes})
    run = RunDirectory.of(config)
    run.create()
    run.write_config(config)
    export_model(config, trial.built, weights(trial.objective), run.export, step=3, metrics={"val/loss": 1.0})
    return run.path


@pytest.mark.parametrize("choice", choices(), ids=str)
def test_an_export_measures_what_the_trained_model_does(trial_of: Trials, choice: Choice, tmp_path: Path):
    (expected,) = trial_of(choice).evaluation(micro_visits=2)
    metrics, counts = evaluate_run(exported(trial_of(choice), tmp_path), "val")
    assert metrics.items() >= expected.metrics.items()
    assert counts.items() >= expected.counts.items()


@pytest.mark.parametrize(
    "choice",
    [Choice("snli_ve", ()), Choice("nlvr2", ()), Choice("vqa", ("losses.classify=0.5", "answers.by=classify"))],
    ids=str,
)
def test_photos_of_a_split_are_labelled_as_its_evaluation_labels_them(trial_of: Trials, choice: Choice, tmp_path: Path):
    trial = trial_of(choice)
    (expected,) = trial.evaluation(micro_visits=2)
    model = duoflow.load(exported(trial, tmp_path))
    for sample in range(2):
        photos = [Image.open(BytesIO(data)) for data in trial.val.reader.images(sample)]
        for item in trial.val.reader.sample(sample).items:
            answer = model.answer(photos, item.statement if hasattr(item, "statement") else item.question)
            said = expected.predictions[item.item_id]
            assert answer.text == (said[0] if isinstance(said, list) else said)
            others = {one.text for one in answer.alternatives}
            assert answer.text not in others
            assert others <= set(trial.built.classes)
            assert all(one.probability <= answer.probability for one in answer.alternatives)


def test_the_command_takes_the_two_images_of_a_statement_together(
    trial_of: Trials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trial = trial_of(Choice("nlvr2", ()))
    path, (one, other) = exported(trial, tmp_path), trial.val.reader.images(0)
    files = [tmp_path / "left.png", tmp_path / "right.png"]
    for file, data in zip(files, (one, other), strict=True):
        file.write_bytes(data)
    statement = trial.val.reader.sample(0).items[0].statement
    expected = duoflow.load(path).answer(files, statement)
    command = ["answer", str(path), "--question", statement, "--image"]
    assert main([*command, *map(str, files)]) == 0
    assert capsys.readouterr().out == f"{expected.text}  ({100 * expected.probability:.1f} %)\n"
    assert main([*command, str(files[0])]) == 2
    assert "1 photos, and the model of" in capsys.readouterr().err


def test_an_export_names_its_classes_and_its_heads(trial_of: Trials, tmp_path: Path):
    path = exported(trial_of(BOTH), tmp_path)
    content = json.loads((path / "export" / "export.json").read_text())
    assert tuple(content["classes"]) == trial_of(BOTH).built.classes
    assert len(content["classes"]) == len(set(content["classes"])) > 4
    assert {name.partition(".")[0] for name in load_file(path / "export" / HEADS)} == {"classify"}
    assert "classify head" in (path / "export" / "README.md").read_text()


def test_an_export_without_heads_has_no_file_for_them(trial_of: Trials, tmp_path: Path):
    path = exported(trial_of(Choice("gqa", ())), tmp_path)
    assert not (path / "export" / HEADS).exists()
    assert "classes" not in json.loads((path / "export" / "export.json").read_text())


def test_heads_that_are_damaged_or_gone_are_named(trial_of: Trials, tmp_path: Path):
    path = exported(trial_of(BOTH), tmp_path)
    heads = path / "export" / HEADS
    state = load_file(heads)
    save_file({name: value[:1].contiguous() for name, value in state.items()}, heads)
    with pytest.raises(UserError, match=f"{HEADS}: is not the file that was exported"):
        evaluate_run(path, "val")
    seal(path / "export", {})  # as if they had been written so
    with pytest.raises(UserError, match=f"{HEADS}: does not load into this recipe's heads"):
        evaluate_run(path, "val")
    heads.unlink()
    with pytest.raises(UserError, match=f"{HEADS}: is missing"):
        evaluate_run(path, "val")


@pytest.mark.parametrize("by", ["classify", "rank", "generate"])
def test_a_run_that_has_learnt_both_answers_in_every_way(trial_of: Trials, tmp_path: Path, by: str):
    path = exported(trial_of(BOTH), tmp_path)
    metrics, _ = evaluate_run(path, "val", overrides=[f"answers.by={by}"])
    assert 0 <= metrics["val/accuracy"] <= 1
    written = RunDirectory(path).predictions("val" if by == "generate" else f"val.{by}")
    said = {row["answer"] for row in json.loads(written.read_text())}
    if by != "generate":
        assert said <= set(trial_of(BOTH).built.classes)


def test_a_run_without_a_list_can_still_rank_the_answers_of_its_training(trial_of: Trials, tmp_path: Path):
    path = exported(trial_of(PLAIN), tmp_path)
    metrics, _ = evaluate_run(path, "val", overrides=["answers.by=rank"])
    assert 0 <= metrics["val/accuracy"] <= 1


def test_the_list_of_the_recipe_is_ranked_where_it_has_one(trial_of: Trials, tmp_path: Path):
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(["Red", "the red", "a left"]))
    listed = trial_of(PLAIN).config.answers.model_copy(update={"list": str(answers)})
    path = exported(trial_of(PLAIN), tmp_path, answers=listed)
    evaluate_run(path, "val", overrides=["answers.by=rank"])
    said = {row["answer"] for row in json.loads(RunDirectory(path).predictions("val.rank").read_text())}
    assert said <= {"red", "left"}, "as classes are written"


def test_answers_of_a_training_split_that_is_gone_cannot_be_ranked(trial_of: Trials, tmp_path: Path):
    gone = trial_of(PLAIN).config.data.model_copy(update={"train": str(tmp_path / "gone")})
    path = exported(trial_of(PLAIN), tmp_path, data=gone)
    evaluate_run(path, "val")
    with pytest.raises(
        UserError, match=r"^answers\.by: rank takes the answers of data\.train.*gone: no such directory"
    ):
        evaluate_run(path, "val", overrides=["answers.by=rank"])


def test_what_was_not_learnt_cannot_answer(trial_of: Trials, tmp_path: Path):
    path = exported(trial_of(PLAIN), tmp_path)
    with pytest.raises(UserError, match=r"answers\.by: classify needs what losses\.classify trains, and that is 0"):
        evaluate_run(path, "val", overrides=["answers.by=classify"])


def test_shards_of_another_task_are_refused(trial_of: Trials, data_of: Callable[[str], dict[str, str]], tmp_path: Path):
    path, other = exported(trial_of(PLAIN), tmp_path), data_of("nlvr2")["val"]
    with pytest.raises(UserError, match=r"data\.test: \S+ was built from format nlvr2, and task vqa reads vqa") as told:
        evaluate_run(path, "test", overrides=[f"data.test={other}"])
    assert "\n" not in str(told.value)
