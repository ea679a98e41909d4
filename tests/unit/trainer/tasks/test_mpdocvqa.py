"""MP-DocVQA's scores of a validation, and its file, which scores as the validation did."""

import json
from pathlib import Path

import pytest

from model.config import LossConfig
from shards.format.documents import DocumentQuestion
from shards.format.index import SplitIndex
from tests.documents import write_mpdocvqa
from trainer import cli
from trainer.tasks import Outputs
from trainer.tasks.mpdocvqa import TASK


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Path, list[DocumentQuestion]]:
    """Official questions, and the items that they become."""
    files = write_mpdocvqa(tmp_path / "files", num_samples=10, seed=2, whole=True)
    (path,) = files.questions
    items = [
        DocumentQuestion(
            question_id=str(one["questionId"]),
            question=one["question"],
            pages=tuple(one["page_ids"]),
            answers=tuple(one["answers"]),
            answer_page=one["answer_page_idx"],
        )
        for one in json.loads(path.read_text())["data"]
    ]
    return path, items


def said_of(items: list[DocumentQuestion]) -> Outputs:
    """Answers and rankings of which some are right."""
    answers = [item.answers[0][: len(item.answers[0]) - number % 3] for number, item in enumerate(items)]
    turned = [[*range(number % len(item.pages), len(item.pages))] for number, item in enumerate(items)]
    ranked = [[*some, *(set(range(len(item.pages))) - set(some))] for item, some in zip(items, turned, strict=True)]
    return Outputs(answers=answers, pages=ranked)


def test_the_file_scores_as_the_validation_did(asked: tuple[Path, list[DocumentQuestion]], tmp_path: Path):
    questions, items = asked
    scores = TASK.scores()
    made = TASK.dump(TASK.observe(scores, items, said_of(items), False))
    ending, content = made.ending, made.content
    assert ending == "json"
    (tmp_path / "val.json").write_bytes(content)
    words = ["--questions", str(questions), "--predictions", str(tmp_path / "val.json")]
    assert cli.main(["score", "--task", "mpdocvqa", *words, "--json", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())["scores"]
    metrics = scores[0].as_metrics()
    assert 0 < metrics["val/anls"] < 1
    assert found == {
        name.removeprefix("val/").replace("page_accuracy", "pageAccuracy").replace("long_hit", "longHit"): (
            pytest.approx(value, abs=1e-9)
        )
        for name, value in metrics.items()
    }
    document = json.loads(content)
    assert document["Mean ANLS"] == pytest.approx(metrics["val/anls"], abs=1e-9)
    assert document["Mean Retrieval precision"] == pytest.approx(metrics["val/page_accuracy"])


def test_a_sample_has_the_framework_s_fields_and_ids_are_in_the_order_of_numbers():
    items = [
        DocumentQuestion(question_id=name, question="?", pages=("a", "b"), answers=("none",), answer_page=1)
        for name in ("10", "9")
    ]
    said = TASK.observe(TASK.scores(), items, Outputs(answers=["none", "x"], pages=[[1, 0], [0, 1]]), False)
    document = json.loads(TASK.dump(said).content)
    assert list(document["Scores by samples"]) == ["9", "10"]
    assert document["Scores by samples"]["10"] == {
        "pred_answer": "none",
        "pred_answer_conf": None,
        "pred_answer_page": 1,
        "pred_answer_pages": [1, 0],
        "accuracy": 0,
        "anls": 0.0,
        "ret_prec": 1,
    }
    assert (document["Mean accuracy"], document["Mean Retrieval precision"]) == (0.0, 0.5)


def test_answers_without_pages_and_questions_without_answers_count_where_they_can():
    known = DocumentQuestion(question_id="1", question="?", pages=("a",), answers=("x",), answer_page=0)
    hidden = DocumentQuestion(question_id="2", question="?", pages=("a",))
    scores = TASK.scores()
    said = TASK.observe(scores, [known, hidden], Outputs(answers=["x", "y"]), False)
    assert scores[0].as_metrics() == {"val/accuracy": 1.0, "val/anls": 1.0}
    assert said["2"] == {"pred_answer": "y", "pred_answer_conf": None, "pred_answer_page": None}
    assert json.loads(TASK.dump(said).content)["Mean Retrieval precision"] is None
    assert TASK.observe(TASK.scores(), [known], Outputs(), False) == {}
    assert TASK.observe(TASK.scores(), (), Outputs(answers=["dummy"]), False) == {}


def test_a_split_without_long_documents_does_not_measure_them():
    index = SplitIndex(reader="mpdocvqa", sources=[], options={}, counts={}, answers={"x": 1}, groups={}, shards=[])
    short = TASK.measured(index)
    assert "hit@3" in short
    assert not any(name.startswith("long_") for name in short)
    index.types["window_type"] = {"3 pages and more": 1}
    assert TASK.measured(index) == frozenset(TASK.metrics(LossConfig(page=0.25)))
    assert set(TASK.metrics(LossConfig(page=0))) == {"accuracy", "anls"}
