"""Things whose color a coarse look tells and whose shape only a fine one: questions about either, and about both.

All shapes cover about as many pixels and spread as far, so that a picture made much smaller shows where a thing is and
what color it has, and hardly which shape. All colors are equally bright, and a thing may be painted pale, so that
a picture without color shows every outline and no color. What two encoders know that each lack one of the two is
needed together for every third question.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.scenes.several_things import Picture, Question, free_center, several_things_files
from shards.scenes.world import IMAGE_SIZE, Dice, Rgb

COLORS: dict[str, Rgb] = {"red": (180, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 180), "brown": (110, 100, 30)}
"""Each sums up to 240: to an encoder whose weights are the same for all three channels they are one grey."""
GROUND: Rgb = (215, 215, 215)
STRENGTHS = (60, 70, 80, 90, 100)
"""How much of a thing's color is its own, in percent; the rest is the ground's."""
SHAPES = ("ring", "cross", "saltire")
HALF = 5
"""Half of a thing's extent in pixels."""
GAP = 2 * HALF + 3
COUNTS = (3, 4, 5)
"""Things in a picture."""
CENTERS = range(HALF + 1, IMAGE_SIZE - HALF - 1)
SPLITS = ("first", "train", "val", "testdev")
_SPLIT_CYCLE = (1, 1, 0, 1, 2, 1, 0, 1, 3, 1, 0, 1, 3, 0, 1, 1, 0, 1, 1, 0)
MIN_IMAGES = 9
"""The first images hold one of each split."""
EACH = 4
"""Questions of each sort about a picture, at most."""
COLOR, DETAIL, BOTH = "attr", "cat", "rel"
"""GQA's semantic types stand for what is needed: the color, the shape, or both."""
SIDES = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "lowest": (1, -1)}
"""Which thing is meant: the first along this axis, in this direction."""
CLEAR = 3
"""Pixels by which it is."""


class Thing(NamedTuple):
    """One shape in one color, strong or pale."""

    shape: str
    color: str
    strength: int
    center: tuple[int, int]
    """x, y in pixels."""


def split_of(number: int) -> str:
    """The split of an image number: 30 % for the first encoder, 55 % train, 5 % val, 10 % testdev."""
    return SPLITS[_SPLIT_CYCLE[number % len(_SPLIT_CYCLE)]]


def image_counts(num_images: int) -> Counter[str]:
    """How many images each split gets."""
    return Counter(map(split_of, range(num_images)))


def color_and_detail_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set, images first: a pure function of its arguments."""
    return several_things_files((_picture(Dice(seed, number)) for number in range(num_images)), SPLITS)


def _picture(dice: Dice) -> Picture:
    shown, split = things(dice), split_of(dice.image)
    asked = questions(dice, shown, only=COLOR if split == "first" else None)
    return Picture(split, dice.image, draw(shown), asked)


def things(dice: Dice) -> tuple[Thing, ...]:
    """Three to five things, none of which touches another."""
    placed: list[Thing] = []
    for place in range(dice.pick(COUNTS, "things")):
        shape, color = dice.pick(SHAPES, "shape", place), dice.pick(tuple(COLORS), "color", place)
        center = free_center(dice, place, CENTERS, GAP, [other.center for other in placed])
        placed.append(Thing(shape, color, dice.pick(STRENGTHS, "strength", place), center))
    return tuple(placed)


def shape_mask(shape: str) -> NDArray[np.bool_]:
    """Which pixels around its centre a shape covers: (2 HALF + 1, 2 HALF + 1).

    They are 56, 57 and 45, of which the mean square distance from the centre is 12.9, 12.1 and 13.1.
    """
    y, x = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    radius = x * x + y * y
    straight = np.minimum(abs(x), abs(y)) <= 1
    slanted = np.minimum(abs(x - y), abs(x + y)) <= 1
    return {
        "ring": (radius >= 5) & (radius <= 20),
        "cross": straight,
        "saltire": slanted & (np.maximum(abs(x), abs(y)) <= HALF - 1),
    }[shape]


def draw(shown: tuple[Thing, ...]) -> NDArray[np.uint8]:
    """The picture: (IMAGE_SIZE, IMAGE_SIZE, 3), RGB."""
    pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    pixels[:] = GROUND
    for thing in shown:
        x, y = thing.center
        part = pixels[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1]
        part[shape_mask(thing.shape)] = [
            (thing.strength * own + (100 - thing.strength) * ground) // 100
            for own, ground in zip(COLORS[thing.color], GROUND, strict=True)
        ]
    return pixels


def questions(dice: Dice, shown: tuple[Thing, ...], only: str | None = None) -> list[Question]:
    """At most four of each sort that is asked for."""
    sorts = {COLOR: about_color(shown), DETAIL: about_detail(shown), BOTH: about_both(shown)}
    return [
        question
        for sort, found in sorts.items()
        if only in (None, sort)
        for question in dice.shuffle(list(found), sort)[: EACH if only is None else 3 * EACH]
    ]


def about_color(shown: tuple[Thing, ...]) -> Iterator[Question]:
    """Where a color is, and how often."""
    for color in COLORS:
        number = sum(thing.color == color for thing in shown)
        yield Question(f"How many {color} things are there?", str(number), COLOR, "count color")
    for name, thing in _outermost(shown):
        yield Question(f"What color is the {name} thing?", thing.color, COLOR, "color at")


def about_detail(shown: tuple[Thing, ...]) -> Iterator[Question]:
    """The same of shapes."""
    for shape in SHAPES:
        number = sum(thing.shape == shape for thing in shown)
        yield Question(f"How many {shape}s are there?", str(number), DETAIL, "count shape")
    for name, thing in _outermost(shown):
        yield Question(f"What shape is the {name} thing?", thing.shape, DETAIL, "shape at")


def about_both(shown: tuple[Thing, ...]) -> Iterator[Question]:
    """The color of the only thing of a shape, the shape of the only one of a color, and how many have both."""
    for shape in SHAPES:
        found = [thing for thing in shown if thing.shape == shape]
        if len(found) == 1:
            yield Question(f"What color is the {shape}?", found[0].color, BOTH, "color of")
    for color in COLORS:
        found = [thing for thing in shown if thing.color == color]
        if len(found) == 1:
            yield Question(f"What shape is the {color} thing?", found[0].shape, BOTH, "shape of")
        if len(found) > 1:
            for shape in SHAPES:
                number = sum(thing.shape == shape for thing in found)
                yield Question(f"How many {color} {shape}s are there?", str(number), BOTH, "count both")


def _outermost(shown: tuple[Thing, ...]) -> Iterator[tuple[str, Thing]]:
    for name, (axis, direction) in SIDES.items():
        first, second = sorted(shown, key=lambda thing: direction * thing.center[axis])[:2]
        if abs(first.center[axis] - second.center[axis]) >= CLEAR:
            yield name, first


assert len({sum(rgb) for rgb in COLORS.values()}) == 1, "one grey"
