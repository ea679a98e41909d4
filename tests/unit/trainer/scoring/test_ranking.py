"""Pages ranked for MP-DocVQA's questions: hit@k by hand and as an evaluation counts it, and files that are refused."""

from pathlib import Path

import pytest

from shards.format.documents import DocumentQuestion
from tests.unit.trainer.scoring.task_files import Files, Score, retrieval_files
from trainer.scoring.ranking import Window, score_rankings
from trainer.tasks import task_named
from trainer.tasks.seam import Outputs

RANKS = {"a": (0, 1), "b": (1, 2), "c": (2, 4), "d": (5, 6)}
"""Question -> the rank of its answer page, and the pages of its window."""
BY_HAND = {
    "accuracy": 1 / 4,
    "hit@1": 1 / 4,
    "hit@3": 3 / 4,
    "hit@5": 3 / 4,
    "long_hit@1": 0.0,
    "long_hit@3": 1 / 2,
    "long_hit@5": 1 / 2,
}


def windows() -> dict[str, Window]:
    return {name: Window(tuple(f"p{page}" for page in range(size)), 0) for name, (_, size) in RANKS.items()}


def places(name: str) -> list[int]:
    """A ranking in which the first page, which has the answer, has its rank."""
    rank, size = RANKS[name]
    order = list(range(1, size))
    return [*order[:rank], 0, *order[rank:]]


def test_hits_are_counted_over_all_and_over_long_windows():
    rankings = {name: [f"p{page}" for page in places(name)] for name in RANKS}
    assert score_rankings(windows(), rankings) == BY_HAND


def test_an_evaluation_counts_the_same():
    task = task_named("mpdocvqa_retrieval")
    questions = [
        DocumentQuestion(question_id=name, question="?", answers=("x",), pages=window.pages, answer_page=0)
        for name, window in windows().items()
    ]
    scores = task.scores()
    task.observe(scores, questions, Outputs(pages=[places(name) for name in RANKS]), False)
    assert {name: value for share in scores for name, value in share.as_metrics("x").items()} == {
        f"x/{name}": value for name, value in BY_HAND.items()
    }


def test_where_no_window_is_long_nothing_is_said_of_long_ones():
    assert set(score_rankings({"a": Window(("p0",), 0)}, {"a": ["p0"]})) == {"accuracy", "hit@1", "hit@3", "hit@5"}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return retrieval_files(tmp_path)


def refused(score: Score, files: Files) -> str:
    code, _, error = score(*files.words())
    assert code == 2
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda ranked: ranked.pop("3"), "no ranking for 1 of 8 questions, such as '3'"),
        (lambda ranked: ranked["3"].pop(), "question '3' ranks d3_p0, d3_p1; expected each page of its window once"),
        (lambda ranked: ranked["3"].append("d3_p0"), "expected each page of its window once: d3_p0, d3_p1, d3_p2"),
        (lambda ranked: ranked.update({"99": ["x"]}), "question '99' is not among the questions"),
        (lambda ranked: ranked.update({"1": 7}), "expected {questionId: ["),
    ],
)
def test_rankings_of_another_form_are_one_line(score: Score, files: Files, spoil, said: str):
    spoil(files.contents["predictions"])
    assert said in refused(score, files)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[0].pop("answer_page_idx"), "no answer page; those of the test split are not public"),
        (lambda data: data.append(data[0]), "is there twice"),
        (lambda data: data.clear(), "no question; expected"),
        (lambda data: data[1].update(answer_page_idx=2), "answer_page_idx 2; expected 0 to 1"),
    ],
)
def test_questions_without_what_is_asked_are_one_line(score: Score, files: Files, spoil, said: str):
    spoil(files.contents["questions"]["data"])
    assert said in refused(score, files)
