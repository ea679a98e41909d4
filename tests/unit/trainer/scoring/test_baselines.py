"""What the question alone gives away: the rules of the guess, and its known score on real and rendered sets."""

import json
from pathlib import Path

import pytest

from shards.format.records import Question, Types
from shards.scenes import scene_files
from trainer.scoring.baselines import Accuracy, question_only_accuracy

EASY_VQA = Path(__file__).parents[5] / "shared" / "data" / "easyvqa"


def ask(question, answer, structural="query", semantic="attr", detailed=None):
    types = Types(structural=structural, semantic=semantic, detailed=detailed)
    return Question(question_id=f"{question} {answer}", question=question, answer=answer, types=types)


def from_gqa(text):
    return [
        Question(question_id=key, question=r["question"], answer=r["answer"], types=Types(**r["types"]))
        for key, r in json.loads(text).items()
    ]


def right(train, *evaluated):
    return question_only_accuracy(train, evaluated).correct == len(evaluated)


def test_the_same_text_comes_before_the_type():
    train = [ask("What color?", "red"), ask("What size?", "small"), ask("Which size?", "small")]
    assert right(train, ask("What color?", "red"), ask("What size?", "small"))


def test_an_unseen_text_takes_the_type_and_an_unseen_type_takes_all():
    train = [ask("a", "red"), ask("b", "yes", "verify"), ask("c", "yes", "verify")]
    assert right(train, ask("new", "red"), ask("new", "yes", "verify"), ask("new", "yes", "compare"))


def test_texts_differ_neither_by_case_nor_by_white_space():
    train = [ask("Is it  red? ", "no"), ask("b", "yes"), ask("c", "yes")]
    assert right(train, ask(" is IT\tred?", "no"))


def test_the_detailed_type_is_not_used_since_it_gives_the_answer_away():
    train = [ask("a", "yes", "verify", "obj", "exist"), ask("b", "no", "verify", "obj", "existC")]
    evaluated = [ask("new", "yes", "verify", "obj", "exist"), ask("other", "no", "verify", "obj", "existC")]
    assert question_only_accuracy(train, evaluated) == Accuracy(1, 2)


def test_a_tie_goes_to_the_answer_that_sorts_first_in_any_order_of_training():
    train = [ask("a", "red"), ask("a", "blue")]
    assert right(train, ask("a", "blue"))
    assert right(train[::-1], ask("a", "blue"))


def test_questions_without_an_answer_count_nowhere():
    train = [ask("a", None), ask("a", None), ask("a", "red")]
    assert question_only_accuracy(train, [ask("a", "red"), ask("a", None)]) == Accuracy(1, 1)
    assert question_only_accuracy([], [ask("a", "red")]) == Accuracy(0, 1)
    assert question_only_accuracy(train, []).percent == 0.0


@pytest.mark.skipif(not EASY_VQA.is_dir(), reason=f"{EASY_VQA} is not there")
def test_easy_vqa_gives_67_percent_away():
    train, testdev = (
        from_gqa((EASY_VQA / f"{split}_balanced_questions.json").read_bytes()) for split in ("train", "testdev")
    )
    accuracy = question_only_accuracy(train, testdev)
    assert accuracy.total == 9673
    assert round(accuracy.percent, 1) == 67.0


@pytest.mark.parametrize("seed", [0, 1])
def test_rendered_scenes_give_less_than_45_percent_away(seed):
    files = dict(scene_files(num_images=300, seed=seed))
    backbone, train, testdev = (
        from_gqa(files[f"{split}_balanced_questions.json"]) for split in ("backbone", "train", "testdev")
    )
    for known in (train, backbone + train):
        assert question_only_accuracy(known, testdev).percent < 45
        assert {question.answer for question in testdev} <= {question.answer for question in known}
