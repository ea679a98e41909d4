"""Six things in one picture, and questions that name one of them by its color: about that one, and about the others as
they stand to it. Who cannot tell which of the things is meant knows no more than the question says.

The kind of set is that of Santoro et al., "A simple neural network module for relational reasoning" (2017), section 4.3
(Sort-of-CLEVR): six colors, each once, and questions about one thing or about its relation to the rest.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.scenes.raster import stamp
from shards.scenes.several_things import Picture, Question, free_center, several_things_files
from shards.scenes.world import COLORS, IMAGE_SIZE, RGB_SPREAD, Dice, Rgb, part_of, varied

NUM_THINGS = 6
HALF = 5
"""Half of a thing's extent: it covers 11 pixels each way at most."""
GAP = 2 * HALF + 2
"""Centres are at least so many pixels apart in one direction: no thing touches another."""
CENTERS = tuple(place for place in range(HALF + 1, IMAGE_SIZE - HALF - 1) if abs(2 * place - IMAGE_SIZE) > 4)
"""Where a centre may lie on either axis; not near the middle, so that left and right are never a matter of a pixel."""
CLEAR = 1.5
"""Pixels by which the nearest thing is nearer than the next, and the farthest farther; else it is not asked for."""
SHAPES = ("circle", "square", "triangle")
GROUND: Rgb = (200, 200, 205)
SPLITS = ("train", "val", "testdev")
SINGLE, RELATION = 10, 10
"""Questions of each sort about a picture; relations are fewer where too many are not clear."""
MIN_IMAGES = 4
"""The first images hold one of each split."""


class Thing(NamedTuple):
    """One coloured shape; its color is its own in the picture."""

    shape: str
    color: str
    rgb: Rgb
    center: tuple[int, int]
    """x, y in pixels."""


def image_counts(num_images: int) -> Counter[str]:
    """How many images each split gets."""
    return Counter(SPLITS[part_of(number)] for number in range(num_images))


def six_things_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set, images first: a pure function of its arguments."""
    return several_things_files((_picture(Dice(seed, number)) for number in range(num_images)), SPLITS)


def _picture(dice: Dice) -> Picture:
    shown = things(dice)
    return Picture(SPLITS[part_of(dice.image)], dice.image, draw(dice, shown), questions(dice, shown))


def things(dice: Dice) -> tuple[Thing, ...]:
    """Six things of different colors, none of which touches another."""
    colors = dice.shuffle(tuple(COLORS), "colors")[:NUM_THINGS]
    placed: list[Thing] = []
    for place, color in enumerate(colors):
        shape, rgb = dice.pick(SHAPES, "shape", place), varied(dice, COLORS[color], f"color {place}")
        center = free_center(dice, place, CENTERS, GAP, [other.center for other in placed])
        placed.append(Thing(shape, color, rgb, center))
    return tuple(placed)


def draw(dice: Dice, shown: tuple[Thing, ...]) -> NDArray[np.uint8]:
    """The picture: (IMAGE_SIZE, IMAGE_SIZE, 3), RGB."""
    pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    pixels[:] = varied(dice, GROUND, "ground")
    for thing in shown:
        stamp(pixels, thing.shape, HALF, thing.center, thing.rgb)
    return pixels


def questions(dice: Dice, shown: tuple[Thing, ...]) -> list[Question]:
    """Of those that can be asked, ten about one thing and ten about relations."""
    single = [question for thing in shown for question in about_one(thing)]
    related = [question for thing in shown for question in about_relations(thing, shown)]
    return [*dice.shuffle(single, "single")[:SINGLE], *dice.shuffle(related, "relations")[:RELATION]]


def about_one(thing: Thing) -> Iterator[Question]:
    """Its shape, and where it is."""
    x, y = thing.center
    name, middle = f"the {thing.color} thing", IMAGE_SIZE / 2
    yield Question(f"What shape is {name}?", thing.shape, "attr", "shape")
    yield Question(f"Is {name} on the left or on the right?", "left" if x < middle else "right", "attr", "side")
    yield Question(f"Is {name} at the top or at the bottom?", "top" if y < middle else "bottom", "attr", "height")


def about_relations(thing: Thing, shown: tuple[Thing, ...]) -> Iterator[Question]:
    """The shape of the nearest and of the farthest thing, where that is clear, and how many have the same shape."""
    others = sorted((math.dist(thing.center, other.center), other) for other in shown if other is not thing)
    (nearest, near), (next_nearest, _) = others[:2]
    (next_farthest, _), (farthest, far) = others[-2:]
    name = f"the {thing.color} thing"
    if next_nearest - nearest >= CLEAR:
        yield Question(f"What shape is the thing nearest to {name}?", near.shape, "rel", "nearest")
    if farthest - next_farthest >= CLEAR:
        yield Question(f"What shape is the thing farthest from {name}?", far.shape, "rel", "farthest")
    alike = sum(other.shape == thing.shape for other in shown)
    yield Question(f"How many things have the shape of {name}?", str(alike), "rel", "alike")


assert RGB_SPREAD < 10, "a shade of one color is never that of another"
