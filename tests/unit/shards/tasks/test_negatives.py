"""Negatives: wrong for the image, right in kind, and a function of the data alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.records import Groups, Question, Types
from shards.lower_case import normalise
from shards.plan import Order
from shards.read.micro_batches import Split
from shards.tasks.negatives import answer_draws, answer_negative, question_draws, question_negative
from tests.corpora import build_corpus

ORDER = Order(seed=3, questions_per_visit=3, visits_per_step=4, lanes=2, shuffle_shards=2)
COLORS = {"color": {"red": 6, "blue": 3, "green": 1}}


def question(text: str, answer: str | None, structural: str, *, group: str | None = None, options=()) -> Question:
    types, groups = Types(structural=structural), Groups(global_=group)
    return Question(question_id="1", question=text, answer=answer, types=types, groups=groups, options=options)


@pytest.mark.parametrize("structural", ["verify", "logical"])
def test_yes_and_no_are_flipped(structural: str) -> None:
    assert answer_negative(question("Is it red?", "yes", structural), {}, {}, 0) == "no"
    assert answer_negative(question("Is it red?", "no", structural), {}, {}, 0) == "yes"


def test_a_choice_gets_its_other_option_from_the_program_or_from_the_words() -> None:
    programmed = question(
        "Is it to the left or to the right of it?",
        "to the left of",
        "choose",
        options=("to the left of", "to the right of"),
    )
    assert answer_negative(programmed, {}, {}, 0) == "to the right of"
    vocabulary = dict.fromkeys(["red", "blue", "dark blue", "top", "bottom"], 1)
    assert answer_negative(question("Is it red or dark blue?", "red", "choose"), {}, vocabulary, 0) == "dark blue"
    assert answer_negative(question("Is it red or dark blue?", "dark blue", "choose"), {}, vocabulary, 0) == "red"
    both = question("Is the mirror in the top or in the bottom of the image?", "top", "choose")
    assert answer_negative(both, {}, vocabulary, 0) == "bottom"


def test_an_option_that_is_not_named_falls_back_to_the_group_and_then_to_nothing() -> None:
    unnamed = question("Which is it?", "red", "choose", group="color")
    assert answer_negative(unnamed, {"color": {"red": 3, "blue": 1}}, {"red": 3, "blue": 1}, 5) == "blue"
    assert answer_negative(question("Which is it?", "red", "choose"), COLORS, {}, 0) is None
    assert answer_negative(question("Same color?", "yes", "compare"), COLORS, {}, 0) is None
    assert answer_negative(question("Which?", None, "query", group="color"), COLORS, {}, 0) is None
    assert answer_negative(question("Which?", "red", "query", group="color"), {"color": {"red": 9}}, {}, 0) is None


def test_other_answers_of_the_group_come_as_often_as_the_group_has_them() -> None:
    asked = question("What color is it?", "blue", "query", group="color")
    drawn = [answer_negative(asked, COLORS, {}, draw) for draw in range(700)]
    assert {answer: drawn.count(answer) for answer in set(drawn)} == {"red": 600, "green": 100}


@given(st.integers(0, 2**64 - 1), st.sampled_from(["red", "blue", "green"]))
def test_a_negative_is_never_the_answer(draw: int, answer: str) -> None:
    assert answer_negative(question("What color?", answer, "query", group="color"), COLORS, {}, draw) not in (
        answer,
        None,
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    shards, _ = build_corpus(tmp_path_factory.mktemp("negatives"), num_images=18, questions_per_image=7)
    return Split(str(shards), ORDER)


def test_a_question_negative_comes_from_the_block_and_is_not_asked_of_the_image(split: Split) -> None:
    epoch, found = split.epoch(1), 0
    for image in range(split.index.num_images):
        asked = {normalise(q.question) for q in split.reader.sample(image).questions}
        in_block = {
            (q.question, q.answer)
            for visit in epoch.block(image)
            for q in split.reader.sample(int(epoch.visits.image[visit])).questions
        }
        first = int(epoch.visits.first_question[image])
        for number in range(first, first + int(epoch.visits.num_questions[image])):
            other = question_negative(image, question_draws(epoch, [number])[0], epoch, split.reader)
            if other is not None:
                found += 1
                assert normalise(other.question) not in asked
                assert (other.question, other.answer) in in_block
    assert found > split.visits.num_questions.sum() / 2


def test_a_block_of_one_image_offers_no_question_negative(tmp_path: Path) -> None:
    shards, _ = build_corpus(tmp_path, num_images=1, questions_per_image=4)
    split = Split(str(shards), ORDER)
    assert question_negative(0, question_draws(split.epoch(0), [0])[0], split.epoch(0), split.reader) is None


def test_draws_differ_by_question_and_epoch(split: Split) -> None:
    draws = [answer_draws(split.epoch(epoch), range(20)) for epoch in (0, 1)]
    assert len(np.unique(draws)) == 40
