"""Rankings of pages: what counts as a hit, over all documents and long ones, and the file that another run reads."""

import json
from pathlib import Path

from shards.format.documents import DocumentQuestion
from shards.read.retrieved import read_retrieved
from trainer.tasks import Outputs
from trainer.tasks.mpdocvqa_retrieval import TASK


def question(name: str, num_pages: int, answer: int | None) -> DocumentQuestion:
    pages = tuple(f"{name}_p{page}" for page in range(num_pages))
    answers = () if answer is None else ("7",)
    return DocumentQuestion(question_id=name, question="?", pages=pages, answers=answers, answer_page=answer)


QUESTIONS = [question("a", 1, 0), question("b", 2, 1), question("c", 6, 5), question("d", 3, None), question("e", 4, 2)]
RANKED = [[0], [0, 1], [1, 0, 2, 5, 3, 4], [2, 0, 1], [2, 3, 0, 1]]


def observed() -> tuple[dict[str, float], dict[str, int], dict[str, list[str]]]:
    scores = TASK.scores()
    ranked = TASK.observe(scores, QUESTIONS, Outputs(pages=RANKED), False)
    metrics = {name: value for score in scores for name, value in score.as_metrics().items()}
    return metrics, {name: value for score in scores for name, value in score.as_counts().items()}, ranked


def test_hits_are_counted_over_all_documents_and_over_long_ones():
    metrics, counts, _ = observed()
    assert metrics == {
        "val/accuracy": 2 / 4,
        "val/hit@1": 2 / 4,
        "val/hit@3": 3 / 4,
        "val/hit@5": 4 / 4,
        "val/long_hit@1": 1 / 2,
        "val/long_hit@3": 1 / 2,
        "val/long_hit@5": 2 / 2,
    }
    assert counts["val/hit@1/count"] == 4, "one question has no known page"
    assert counts["val/long_hit@1/count"] == 2


def test_the_file_has_all_pages_of_every_question_by_name_and_is_read_as_it_was_written(tmp_path: Path):
    _, _, ranked = observed()
    made = TASK.dump(ranked)
    ending, content = made.ending, made.content
    assert ending == "json"
    assert list(json.loads(content)) == ["a", "b", "c", "d", "e"]
    (tmp_path / "val.json").write_bytes(content)
    assert read_retrieved(str(tmp_path / "val.json"), 2) == {
        "a": ("a_p0",),
        "b": ("b_p0", "b_p1"),
        "c": ("c_p1", "c_p0"),
        "d": ("d_p2", "d_p0"),
        "e": ("e_p2", "e_p3"),
    }


def test_an_empty_micro_batch_has_a_row_that_no_question_belongs_to():
    scores = TASK.scores()
    assert TASK.observe(scores, [], Outputs(pages=[[0]]), False) == {}
    assert all(score.as_metrics() == {} for score in scores)
