"""VQA's rows: one for each question, whatever its annotators said."""

import pytest

from shards.format.records import VqaQuestion
from shards.tasks.seam import Target, Visit, Wanted
from shards.tasks.vqa import rows

CLASSES = {"red": 0, "blue": 1}


def row(question: VqaQuestion, **wanted: object):
    made = rows(Visit(0, [question], [0]), None, Wanted(blocks=frozenset({"ask"}), **wanted))
    (only,) = made.blocks["ask"]
    return only


def asked(*answers: str, source: str = "vqa") -> VqaQuestion:
    return VqaQuestion(question_id="1", question="what color?", answers=answers, source=source)


def test_distinct_answers_weigh_what_part_of_the_annotators_gave_them():
    assert row(asked(*["red"] * 7, *["blue"] * 3)).targets == (Target("red", 0.7), Target("blue", 0.3))


def test_a_question_of_visual_genome_weighs_what_the_recipe_says_and_its_answer_is_wholly_right():
    made = row(asked("red", source="vg"), genome=0.25, classes=CLASSES)
    assert (made.weight, made.targets, made.label) == (0.25, (Target("red", 0.25),), ((0, 1.0),))


def test_labels_have_the_soft_scores_of_those_answers_that_are_classes():
    made = row(asked(*["Red"] * 2, "blue", "green"), classes=CLASSES)
    assert dict(made.label) == pytest.approx({0: 0.6, 1: 0.3})


def test_a_question_without_answers_weighs_nothing():
    made = row(asked(), classes=CLASSES)
    assert (made.weight, made.label, made.targets) == (0.0, (), (Target("", 0.0),))
