"""ANLS by both definitions to the last digit, pages and hits, and sums that no split over ranks changes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.scoring.task_files import GOLDEN, Files, Score, mpdocvqa_files
from trainer.scoring.anls import (
    CELLS,
    DocumentAnswer,
    DocumentScores,
    Truth,
    anls,
    cells_of,
    edit_distance,
    exact_match,
    score_documents,
)

CASES: dict[str, Any] = json.loads((GOLDEN / "anls.json").read_text())
PAIRS = list(zip(CASES["predictions"], CASES["answers"], strict=True))
texts = st.text(alphabet="abc ", max_size=7)


class TestDefinitions:
    def test_the_framework_s_numbers_come_out_to_the_last_digit(self):
        assert [anls(said, answers) for said, answers in PAIRS] == CASES["framework"]["anls"]
        assert [int(exact_match(said, answers)) for said, answers in PAIRS] == CASES["framework"]["accuracy"]
        assert np.mean([anls(said, answers) for said, answers in PAIRS]) == CASES["framework_mean"]

    def test_guiququ_s_numbers_come_out_to_the_last_digit(self):
        found = [anls(said, answers, "guiququ") for said, answers in PAIRS]
        assert found == CASES["guiququ"]
        assert np.mean(found) == CASES["guiququ_mean"]

    def test_a_right_none_is_nothing_to_the_framework_alone(self):
        assert (anls(" None", ["none"]), exact_match("None ", ["none"])) == (0.0, False)
        assert (anls("none", ["none"], "guiququ"), exact_match("none", ["none"], "guiququ")) == (1.0, True)

    def test_two_empty_texts_are_equal_where_the_original_divides_by_nothing(self):
        assert anls("", [""], "guiququ") == 1.0
        assert anls("", [""]) == 0.0

    def test_half_of_an_answer_is_enough_and_less_is_not(self):
        assert anls("abxy", ["abcd"]) == 0.5
        assert anls("axyz", ["abcd"]) == 0.0

    def test_the_most_similar_answer_counts(self):
        assert anls("abcd", ["zzzz", "abcx", "abxx"]) == 0.75

    @given(texts, texts)
    def test_the_edit_distance_is_that_of_the_shortest_way(self, one: str, other: str):
        assert edit_distance(one, other) == _distance(one, other) == edit_distance(other, one)

    @given(texts, texts, texts)
    def test_a_way_over_a_third_text_is_no_shorter(self, one: str, other: str, third: str):
        assert edit_distance(one, other) <= edit_distance(one, third) + edit_distance(third, other)


class TestPages:
    def test_the_page_is_right_where_the_first_of_the_ranking_is(self):
        truth = Truth(["x"], 2, 7)
        assert cells_of(DocumentAnswer("x", (2, 0, 1, 3, 4), True), truth)[2:] == (1, (1, 1, 1))
        assert cells_of(DocumentAnswer("x", (0, 1, 2, 3, 4), True), truth)[2:] == (0, (0, 1, 1))
        assert cells_of(DocumentAnswer("x", (0, 1, 3, 4, 5, 2), True), truth)[2:] == (0, (0, 0, 0))

    def test_of_the_best_page_alone_only_the_first_hit_is_known(self):
        truth = Truth(["x"], 0, 2)
        assert cells_of(DocumentAnswer("x", (0,)), truth)[2:] == (1, (1, None, None))
        assert cells_of(DocumentAnswer("x", (-1,)), truth)[2:] == (0, (0, None, None))
        assert cells_of(DocumentAnswer("x"), truth)[2:] == (None, (None, None, None))

    def test_short_documents_hit_whatever_is_ranked_and_count_in_the_whole_alone(self):
        truths = {"short": Truth(["x"], 1, 2), "long": Truth(["x"], 1, 5)}
        answers = {"short": DocumentAnswer("", (0, 1), True), "long": DocumentAnswer("", (0, 2, 3, 4, 1), True)}
        found = score_documents(truths, answers)
        assert (found["hit@3"], found["long_hit@3"], found["hit@5"], found["long_hit@5"]) == (0.5, 0.0, 1.0, 1.0)
        assert (found["hit@1"], found["page_accuracy"]) == (0.0, 0.0)

    def test_what_nothing_counts_in_is_not_there(self):
        found = score_documents({"a": Truth(["x"], None, 1)}, {"a": DocumentAnswer("x", (0,), True)})
        assert found == {"accuracy": 1.0, "anls": 1.0}


answered = st.builds(
    lambda said, answers, pages, page, ranked: (
        DocumentAnswer(said, tuple(ranked[: len(ranked) if pages % 2 else 1]), bool(pages % 2)),
        Truth(answers, page % len(ranked), len(ranked)),
    ),
    texts,
    st.lists(texts.filter(bool), min_size=1, max_size=3),
    st.integers(0, 1),
    st.integers(0, 9),
    st.integers(1, 9).flatmap(lambda size: st.permutations(range(size))),
)


class TestSums:
    @given(st.lists(answered, max_size=12), st.integers(1, 4))
    def test_no_split_over_ranks_changes_a_bit(self, rows: Sequence, world_size: int):
        whole, ranks = DocumentScores.empty(), [DocumentScores.empty() for _ in range(world_size)]
        for number, row in enumerate(rows):
            whole.add(*row)
            ranks[number % world_size].add(*row)
        vectors = np.array([rank.to_vector() for rank in ranks], dtype=np.float32)
        merged = DocumentScores.empty().with_vector(vectors.astype(np.float64).sum(axis=0).tolist())
        assert merged == whole
        assert merged.as_metrics() == whole.as_metrics()

    @given(st.lists(answered, min_size=1, max_size=12))
    def test_they_are_the_exact_means_but_for_a_billionth(self, rows: Sequence):
        counted = DocumentScores.empty()
        for row in rows:
            counted.add(*row)
        names = [str(number) for number in range(len(rows))]
        said = dict(zip(names, (row[0] for row in rows), strict=True))
        exact = score_documents(dict(zip(names, (row[1] for row in rows), strict=True)), said)
        assert counted.as_metrics("") == {f"/{name}": pytest.approx(value, abs=1e-9) for name, value in exact.items()}

    def test_counts_say_what_is_behind_each(self):
        counted = DocumentScores.empty()
        counted.add(DocumentAnswer("x", (0, 1, 2), True), Truth(["x"], 0, 3))
        counted.add(DocumentAnswer("x"), Truth(["x"], 0, 1))
        counts = counted.as_counts()
        assert (counts["val/count"], counts["val/anls/count"], counts["val/page_accuracy/count"]) == (2, 2, 1)
        assert counts["val/long_hit@1/count"] == 1
        assert set(counted.as_metrics()) == {f"val/{cell}" for cell in CELLS}
        assert DocumentScores.empty().as_metrics() == DocumentScores.empty().as_counts() == {}


@pytest.fixture
def golden(tmp_path: Path) -> Files:
    return mpdocvqa_files(tmp_path)


class Spoilt(NamedTuple):
    """What a test changes."""

    data: list[dict[str, Any]]
    said: dict[str, dict[str, Any]]


class TestCommand:
    def written(self, score: Score, files: Files, *words: object) -> dict[str, Any]:
        out = files.directory / "scores.json"
        code, _, error = score(*files.words(), "--json", out, *words)
        assert code == 0, error
        return json.loads(out.read_text())

    def test_lines_are_in_the_framework_s_words(self, score: Score, golden: Files):
        code, lines, _ = score(*golden.words())
        assert code == 0
        assert lines == [
            "Accuracy: 0.2500",
            "ANLS: 0.5000",
            "Retrieval precision: 0.2500",
            "Hit@1: 0.2500",
            "Hit@1, 3 pages or more: 0.0000",
            "",
            "8 questions, 6 of them about 3 pages or more",
        ]

    def test_the_json_has_parts_of_one(self, score: Score, golden: Files):
        assert self.written(score, golden) == {
            "task": "mpdocvqa",
            "scores": {"accuracy": 0.25, "anls": 0.5, "pageAccuracy": 0.25, "hit@1": 0.25, "longHit@1": 0.0},
            "counts": {"questions": 8, "long": 6},
        }

    def test_the_other_definition_is_an_option(self, score: Score, golden: Files):
        scores = self.written(score, golden, "--anls", "guiququ")["scores"]
        assert (scores["anls"], scores["accuracy"]) == (0.475, 0.125)

    def test_a_plain_list_says_the_same(self, score: Score, golden: Files):
        framework = self.written(score, golden)
        golden.contents["predictions"] = [
            {"questionId": int(name) if int(name) % 2 else name, "answer": row["pred_answer"]}
            | {"answer_page": row["pred_answer_page"]}
            for name, row in golden.contents["predictions"]["Scores by samples"].items()
        ]
        assert self.written(score, golden) == framework

    def test_rankings_give_every_hit_unrounded_unless_asked(self, score: Score, golden: Files):
        rows = golden.contents["predictions"]["Scores by samples"]
        for number, row in enumerate(rows.values(), start=1):
            row |= {"pred_answer_page": 0, "pred_answer_pages": list(range(number))}
        scores = self.written(score, golden)["scores"]
        assert {name: scores[name] for name in ("hit@1", "hit@3", "hit@5")} == {
            "hit@1": 0.125,
            "hit@3": 0.375,
            "hit@5": 0.625,
        }
        assert (scores["longHit@3"], scores["longHit@5"]) == (1 / 6, 0.5)
        assert self.written(score, golden, "--rounded")["scores"]["longHit@3"] == 0.1667

    def test_answers_without_pages_are_scored_alone(self, score: Score, golden: Files):
        for row in golden.contents["predictions"]["Scores by samples"].values():
            del row["pred_answer_page"]
        assert self.written(score, golden)["scores"] == {"accuracy": 0.25, "anls": 0.5}

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda c: c.data.clear(), "questions.json: no question; expected MP-DocVQA's"),
            (
                lambda c: c.data[1].pop("answers"),
                "questions.json: entry 2 of data: question 2: no answer; the answers of the test split are not public",
            ),
            (
                lambda c: c.data.append(c.data[0]),
                "questions.json: entry 9 of data: question 1: is there twice; expected each question once",
            ),
            (
                lambda c: c.data[2].update(answer_page_idx=3),
                "questions.json: entry 3 of data: question 3: answer_page_idx 3; expected 0 to 2, a place among its 3",
            ),
            (
                lambda c: c.data[2].update(page_ids=[]),
                "questions.json: entry 3 of data: question 3: document 'd3' has no pages",
            ),
            (
                lambda c: c.data[2].update(page_ids=["a", 7]),
                "questions.json: entry 3 of data: Expected `str`, got `int` - at `$.page_ids[1]`",
            ),
            (
                lambda c: c.said["3"].update(pred_answer=7),
                "predictions.json: Expected `str`, got `int` - at `$.Scores by samples[...].pred_answer`",
            ),
            (
                lambda c: c.said.pop("3"),
                "predictions.json: no answer for 1 of 8 questions, such as '3'; answer them too",
            ),
            (
                lambda c: c.said.update({"99": c.said["1"]}),
                "predictions.json: Scores by samples: question '99' is not among the questions",
            ),
            (
                lambda c: c.said["3"].update(pred_answer_page=3),
                "predictions.json: Scores by samples: question '3': page 3; its window has the pages 0 to 2",
            ),
            (
                lambda c: c.said["3"].update(pred_answer_page=1, pred_answer_pages=[0, 1, 2]),
                "predictions.json: Scores by samples: '3': the best page is 1, but the ranking begins with 0",
            ),
            (
                lambda c: c.said["3"].update(pred_answer_page=None, pred_answer_pages=[0, 0, 2]),
                "predictions.json: Scores by samples: question '3': a page is ranked twice; expected each page once",
            ),
            (
                lambda c: c.said["6"].update(pred_answer_page=None, pred_answer_pages=[0, 1, 2]),
                "predictions.json: Scores by samples: question '6': 3 pages are ranked; expected 5 at least, which hit",
            ),
            (
                lambda c: c.said["3"].update(pred_answer_page=None, pred_answer_pages=[0, 1, 2]),
                "predictions.json: 1 of 8 answers rank the pages, that of question '1' does not; expected a ranking",
            ),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, score: Score, golden: Files, change, line: str):
        contents = golden.contents
        change(Spoilt(contents["questions"]["data"], contents["predictions"]["Scores by samples"]))
        code, lines, error = score(*golden.words())
        assert (code, lines, error.count("\n")) == (2, [], 1)
        assert line in error

    @pytest.mark.parametrize(
        ("content", "line"),
        [
            ("{", "predictions.json: Input data was truncated; expected the framework's"),
            ({"scores": {}}, "predictions.json: Object missing required field `Scores by samples`; expected"),
            (
                [{"questionId": 1, "answer": "x"}, {"questionId": "1", "answer": "x"}],
                "predictions.json: entry 2: question '1' is answered a second time; expected one answer for each",
            ),
            ([{"questionId": 1}], "predictions.json: entry 1: Object missing required field `answer`"),
        ],
    )
    def test_a_file_of_another_form_is_one_line(self, score: Score, golden: Files, content, line: str):
        golden.contents["predictions"] = content
        code, lines, error = score(*golden.words())
        assert (code, lines, error.count("\n")) == (2, [], 1)
        assert line in error

    def test_its_option_belongs_to_it(self, score: Score, vqa: Files):
        code, _, error = score(*vqa.words(), "--anls", "guiququ")
        assert (code, error.count("\n")) == (2, 1)
        assert "--anls: belongs to --task mpdocvqa; leave it out of --task vqa" in error


def _distance(one: str, other: str) -> int:
    """By its definition, over all ways."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return _distance(one[1:], other[1:])
    return 1 + min(_distance(one[1:], other), _distance(one, other[1:]), _distance(one[1:], other[1:]))
