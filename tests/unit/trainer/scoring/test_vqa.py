"""VQA's accuracy is the official script's to the last bit, and does not depend on how questions were split."""

import json
import random
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.vqa_text import normalise_label, normalise_prediction, simplify_words, soft_scores, strip_punctuation
from trainer.scoring.metrics import merge_over_ranks
from trainer.scoring.vqa import VqaAnnotation, VqaResult, VqaScores, answer_accuracy, score_vqa

GOLDEN = Path(__file__).parents[3] / "golden" / "tasks"
"""Hand-made (vqa.json) and random (vqa_quirks.json) cases, and what the official script makes of them."""

untimed = settings(deadline=None, max_examples=60)

texts = st.one_of(
    st.sampled_from(
        ["yes", "no", "2", "two", "none", "a red", "t-shirt", "1,000", "dont know", "p.m.", "It's", " red"]
    ),
    st.text("ab ,.-'1?", max_size=6),
)
annotators = st.lists(texts, min_size=10, max_size=10)
questions = st.lists(
    st.tuples(texts, annotators, st.sampled_from(["yes/no", "number", "other"])), min_size=1, max_size=12
)


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def scored(cases: dict[str, Any]) -> VqaResult:
    annotations = {
        key: VqaAnnotation(case["answers"], case["answer_type"], case.get("question_type", ""))
        for key, case in cases.items()
    }
    return score_vqa(annotations, {key: case["prediction"] for key, case in cases.items()})


class TestAgainstTheOfficialScript:
    @pytest.mark.parametrize("key", golden("vqa.json")["cases"])
    def test_each_hand_made_case_is_the_same(self, key: str):
        case = golden("vqa.json")["cases"][key]
        assert 100 * answer_accuracy(case["prediction"], case["answers"]) == pytest.approx(case["accuracy"], abs=1e-12)

    def test_the_hand_made_cases_together_are_the_same(self):
        document = golden("vqa.json")
        for number, case in document["cases"].items():
            case["question_type"] = "what is" if int(number) % 2 else "is the"
        result = scored(document["cases"]).rounded()
        assert result.accuracy == document["accuracy"]["overall"] == 58.0
        assert result.per_answer_type == document["accuracy"]["perAnswerType"]
        assert result.per_question_type == document["accuracy"]["perQuestionType"]

    def test_random_cases_are_the_same_in_every_printed_number(self):
        document = golden("vqa_quirks.json")
        result = scored(document["cases"]).rounded()
        assert result.accuracy == document["accuracy"]["overall"]
        assert result.per_answer_type == document["accuracy"]["perAnswerType"]
        assert result.per_question_type == document["accuracy"]["perQuestionType"]
        assert result.per_question == {key: case["accuracy"] for key, case in document["cases"].items()}

    def test_every_text_is_rewritten_as_the_script_does(self):
        for text, bare, simple in golden("vqa_quirks.json")["texts"]:
            assert strip_punctuation(text) == bare, repr(text)
            assert simplify_words(text) == simple, repr(text)


class TestQuirks:
    @pytest.mark.parametrize("answer", ["none", "dont know", "p.m.", "t-shirt", "the end", "Yes"])
    def test_ten_equal_answers_are_compared_as_written(self, answer: str):
        assert answer_accuracy(answer, [answer] * 10) == 0.0

    def test_one_other_answer_cleans_all_of_punctuation(self):
        assert answer_accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1.0

    def test_the_annotators_number_words_articles_and_capitals_stay(self):
        for answer in ("two", "the end", "Yes", "dont know"):
            assert answer_accuracy(answer, [answer] * 9 + ["x"]) == 0.0

    def test_a_line_break_in_a_prediction_is_a_blank(self):
        assert normalise_prediction("\tleft\nside \n") == "left side"

    def test_a_sign_beside_a_blank_leaves_none(self):
        assert strip_punctuation("a-b") == "a b"
        assert strip_punctuation("a- b-c") == "a bc"

    def test_a_comma_in_a_number_leaves_no_blank_for_any_sign(self):
        assert strip_punctuation("1,000/t-shirt") == "1000tshirt"

    def test_no_more_than_32_full_stops_go(self):
        assert strip_punctuation("." * 40) == "." * 8

    def test_a_full_stop_behind_a_digit_goes_but_not_before_one(self):
        assert (strip_punctuation("5."), strip_punctuation("3.5")) == ("5", "3.5")

    def test_an_annotator_does_not_agree_with_himself(self):
        assert answer_accuracy("red", ["red"]) == 0.0
        assert answer_accuracy("red", ["red", "red"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("count", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_an_answer_is_right_as_far_as_three_others_gave_it(count: int, accuracy: float):
    assert answer_accuracy("red", ["red"] * count + ["blue"] * (10 - count)) == pytest.approx(accuracy, abs=1e-15)


@untimed
@given(prediction=texts, answers=annotators, seed=st.integers(0, 9))
def test_the_order_of_the_annotators_does_not_matter(prediction: str, answers: list[str], seed: int):
    shuffled = random.Random(seed).sample(answers, len(answers))
    accuracy = answer_accuracy(prediction, answers)
    assert 0 <= accuracy <= 1
    assert answer_accuracy(prediction, shuffled) == pytest.approx(accuracy, abs=1e-15)


@untimed
@given(rows=questions)
def test_rounding_is_the_only_difference_of_the_printed_numbers(rows):
    names = ("prediction", "answers", "answer_type")
    result = scored({str(number): dict(zip(names, row, strict=True)) for number, row in enumerate(rows)})
    assert result.rounded().accuracy == round(result.accuracy, 2)
    assert result.rounded().per_question == {key: round(value, 2) for key, value in result.per_question.items()}
    assert result.accuracy == pytest.approx(sum(result.per_question.values()) / len(rows), abs=1e-9)


class TestSoftScores:
    def test_four_annotators_make_an_answer_a_whole_label(self):
        answers = ["red"] * 4 + ["blue"] * 3 + ["green"] * 2 + ["black"]
        assert soft_scores(answers) == {"red": 1.0, "blue": 0.9, "green": 0.6, "black": 0.3}

    def test_spellings_of_one_answer_count_together(self):
        assert soft_scores(["Two", "2", "two.", "a 2"]) == {"2": 1.0}

    @pytest.mark.parametrize(
        ("answer", "label"), [("The T-shirt", "t shirt"), ("1,000", "1000"), ("none", "0"), ("dont know", "don't know")]
    )
    def test_a_label_is_the_rewritten_answer(self, answer: str, label: str):
        assert normalise_label(answer) == label

    @untimed
    @given(answers=st.lists(st.sampled_from(["red", "blue", "green", "black"]), min_size=10, max_size=10))
    def test_a_label_is_the_accuracy_that_its_answer_would_have(self, answers: list[str]):
        for answer, score in soft_scores(answers).items():
            if len(set(answers)) > 1:
                assert score == pytest.approx(answer_accuracy(answer, answers), abs=1e-15)


def sums(rows) -> VqaScores:
    scores = VqaScores.empty()
    for prediction, answers, answer_type in rows:
        scores.add(prediction, answers, answer_type)
    return scores


class TestSumsOfValidation:
    @untimed
    @given(rows=questions, ranks=st.integers(1, 4))
    def test_no_value_depends_on_how_questions_were_split(self, rows, ranks: int):
        whole = sums(rows)
        parts = [sums(rows[rank::ranks]) for rank in range(ranks)]
        assert reduce(add, parts, VqaScores.empty()) == whole
        vectors = [part.to_vector() for part in parts]
        (merged,) = merge_over_ranks(
            [parts[0]], lambda vector: [sum(column) for column in zip(vector, *vectors[1:], strict=True)]
        )
        assert merged == whole

    @untimed
    @given(rows=questions)
    def test_the_metrics_are_the_official_accuracies_in_parts_of_1(self, rows):
        names = ("prediction", "answers", "answer_type")
        result = scored({str(number): dict(zip(names, row, strict=True)) for number, row in enumerate(rows)})
        expected = {"val/accuracy": result.accuracy / 100}
        for kind, value in result.per_answer_type.items():
            expected[f"val/{kind.replace('/', '_')}"] = value / 100
        assert sums(rows).as_metrics() == pytest.approx(expected, abs=1e-12)

    def test_counts_stand_beside_the_metrics(self):
        answers = ["red"] * 10
        scores = sums([("red", answers, "other"), ("blue", answers, "yes/no"), ("red", answers, None)])
        assert scores.as_metrics("test") == {
            "test/accuracy": pytest.approx(2 / 3),
            "test/yes_no": 0.0,
            "test/other": 1.0,
        }
        assert scores.as_counts("test") == {"test/count": 3, "test/yes_no/count": 1, "test/other/count": 1}

    def test_a_type_that_vqa_does_not_have_counts_in_the_accuracy_alone(self):
        assert sums([("red", ["red"] * 10, "colour")]).as_metrics() == {"val/accuracy": 1.0}

    def test_nothing_seen_has_no_metrics(self):
        assert (VqaScores.empty().as_metrics(), VqaScores.empty().as_counts()) == ({}, {})

    def test_other_numbers_of_annotators_have_their_own_mean(self):
        assert sums([("red", ["red", "red", "blue"], "other")]).as_metrics()["val/accuracy"] == pytest.approx(4 / 9)
