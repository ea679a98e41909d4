"""Pictures of six things, checked by looking at their pixels."""

import math

import numpy as np
import pytest

from shards.scenes.six_things import (
    CLEAR,
    HALF,
    NUM_THINGS,
    RELATION,
    SHAPES,
    SINGLE,
    about_one,
    about_relations,
    draw,
    image_counts,
    questions,
    six_things_files,
    things,
)
from shards.scenes.world import COLORS, IMAGE_SIZE, Dice

NUMBERS = range(60)


def seen(dice: Dice) -> dict[str, tuple[str, float, float]]:
    """Color -> shape and place, from the pixels alone: a circle has no corners, a triangle not the upper ones."""
    pixels = draw(dice, things(dice)).astype(int)
    ground = pixels[0, 0]
    found = {}
    for rgb in {tuple(rgb) for rgb in pixels.reshape(-1, 3) if (rgb != ground).any()}:
        color = min(COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(COLORS[name], rgb, strict=True)))
        rows, columns = np.nonzero((pixels == rgb).all(axis=-1))
        box = (pixels == rgb).all(axis=-1)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        shape = "square" if box[0, 0] and box[-1, -1] else "triangle" if box[-1, -1] else "circle"
        found[color] = (shape, (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2)
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_answers_are_what_the_picture_shows(number: int):
    dice = Dice(3, number)
    shown = seen(dice)
    assert len(shown) == NUM_THINGS

    def far(one: str, other: str) -> float:
        return math.dist(shown[one][1:], shown[other][1:])

    for question in questions(dice, things(dice)):
        color = next(name for name in COLORS if f"the {name} thing" in question.text)
        shape, x, y = shown[color]
        others = [name for name in shown if name != color]
        expected = {
            "shape": shape,
            "side": "left" if x < IMAGE_SIZE / 2 else "right",
            "height": "top" if y < IMAGE_SIZE / 2 else "bottom",
            "alike": str(sum(found[0] == shape for found in shown.values())),
            "nearest": shown[min(others, key=lambda name: far(color, name))][0],
            "farthest": shown[max(others, key=lambda name: far(color, name))][0],
        }
        assert question.answer == expected[question.topic], question


def test_a_nearest_thing_is_asked_for_only_where_it_is_clear():
    asked = left_out = 0
    for number in NUMBERS:
        shown = things(Dice(3, number))
        for thing in shown:
            distances = sorted(math.dist(thing.center, other.center) for other in shown if other is not thing)
            clear = distances[1] - distances[0] >= CLEAR
            assert clear == any(question.topic == "nearest" for question in about_relations(thing, shown))
            asked, left_out = asked + clear, left_out + (not clear)
    assert asked > 100
    assert left_out > 20


def test_a_text_alone_says_little():
    """Every answer to a question about one thing is as likely as the others."""
    counts: dict[str, list[str]] = {}
    for number in range(400):
        for thing in things(Dice(5, number)):
            for question in about_one(thing):
                counts.setdefault(question.text, []).append(question.answer)
    for text, answers in counts.items():
        kinds = set(answers)
        most = max(answers.count(kind) for kind in kinds)
        assert most / len(answers) < 1 / len(kinds) + 0.1, text
        assert kinds in ({"left", "right"}, {"top", "bottom"}, set(SHAPES))


def test_things_do_not_touch():
    for number in NUMBERS:
        centers = [thing.center for thing in things(Dice(3, number))]
        for place, (x, y) in enumerate(centers):
            assert all(max(abs(x - a), abs(y - b)) > 2 * HALF for a, b in centers[:place])


def test_files_are_the_same_every_time_and_hold_twenty_questions_a_picture():
    files = dict(six_things_files(num_images=30, seed=2))
    assert files == dict(six_things_files(num_images=30, seed=2))
    assert files != dict(six_things_files(num_images=30, seed=3))
    lines = sum(content.count(b'"imageId"') for name, content in files.items() if name.endswith(".json"))
    assert 0.95 * 30 * (SINGLE + RELATION) <= lines <= 30 * (SINGLE + RELATION)
    assert image_counts(30).total() == 30
