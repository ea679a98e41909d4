"""Tables in and out: every question gets the answer that it gets alone, and predictions can be read."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.runs import Project, answer_photo
from tests.unit.trainer.inference.test_answer import QUESTION, finished_run
from trainer.build import open_split
from trainer.cli import main
from trainer.inference.doubts import BLANK, doubts, unknown_words
from trainer.inference.evaluate import evaluate_export
from trainer.inference.table import COLUMNS, read_predicted
from trainer.reporting.overlays import Answered
from trainer.run_directory import RunDirectory


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(project, tmp_path_factory.mktemp("runs") / "direct")


@pytest.fixture
def photo(project: Project, tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(open_split(project.config(), "val").reader.images(0)[0])
    return tmp_path / "photo.jpg"


def test_the_table_of_predictions_is_the_file_to_hand_in_with_what_was_asked(run: Path, project: Project, capsys):
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    told = capsys.readouterr().out
    directory = RunDirectory(run)
    assert f"written, to hand in: {directory.predictions('val')}" in told
    assert f"written, to read: {directory.predictions_table('val')}" in told
    handed = {row["questionId"]: row["prediction"] for row in json.loads(directory.predictions("val").read_text())}
    rows = read_predicted(directory.predictions_table("val"))
    assert {row.item_id: row.prediction for row in rows} == handed
    assert all(0 < row.probability <= 1 for row in rows)
    assert all(row.correct == float(row.prediction == row.answer) for row in rows)
    found = evaluate_export(run, "val")
    assert sum(row.correct for row in rows) / len(rows) == pytest.approx(found.metrics["val/accuracy"])
    assert {row.image for row in rows} == {
        picture.image_id
        for number in range(9)
        for picture in open_split(project.config(), "val").reader.sample(number).pictures
    }


def test_a_table_of_questions_gets_the_answers_of_each_alone(run: Path, photo: Path, tmp_path: Path, capsys):
    asked = [QUESTION, 'What "color", or shape, is it?']
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "question"), *(("photo.jpg", question) for question in asked)])
    assert main(["answer", str(run), "--questions", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "o.csv")]) == 0
    assert f"written: {tmp_path / 'o.csv'}" in capsys.readouterr().out
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["question"] for row in rows] == asked
    for row in rows:
        alone = answer_photo(run, photo, row["question"])
        assert row["answer"] == alone.text
        assert float(row["probability"]) == pytest.approx(alone.confidence, abs=1e-3)


@pytest.mark.usefixtures("photo")
@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("image,question\nnowhere.jpg,Is it red?\n", [], "line 2: image "),
        ("image,words\nphoto.jpg,red\n", [], "no column can be told to hold the question"),
        (
            "image,question\nphoto.jpg,Is it red?\n",
            ["--question", "a?"],
            "--question: has no effect beside --questions",
        ),
        ("image,question\nphoto.jpg,Is it red?\n", ["--out", "no/such.csv"], "--out no/such.csv: cannot be made"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(
    run: Path, content: str, options: list[str], said: str, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text(content)
    assert main(["answer", str(run), "--questions", "rows.csv", *options]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_words_that_the_model_does_not_know_are_named(run: Path, photo: Path, capsys):
    assert main(["answer", str(run), "--image", str(photo), "--question", "🙂 🙂 🚀 is there a red square?"]) == 0
    assert "note: the model does not know 🙂, 🚀: " in capsys.readouterr().err


def test_an_answer_that_a_blank_photo_gets_too_is_told_from_one_that_owes_to_the_photo():
    def answers(photos, _):
        assert photos[0][0].getcolors() == [(12, BLANK)]
        return [Answered("yes", 0.9)]

    model = SimpleNamespace(answers=answers, exported=SimpleNamespace(built=SimpleNamespace(tokenizers={})))
    photo = (Image.new("RGB", (4, 3)),)
    assert unknown_words(model, "is it?") == []
    for answered, told in ((("yes", 0.92), 1), (("yes", 0.99), 0), (("no", 0.5), 0)):
        assert len(doubts(model, photo, "is it?", Answered(*answered))) == told


def test_the_columns_are_those_that_are_promised():
    assert COLUMNS == ("id", "image", "question", "answer", "prediction", "probability", "correct")
