"""Statements over two scenes in NLVR2's own format, balanced so that the text alone is right half of the time.

A set is four pairs of scenes with two statements, one about shapes and one about colors, each true of exactly two of
the pairs. What one statement asks of a scene leaves the other free: any shape can have any color.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.scenes.groups import Group, group_files, whole_groups
from shards.scenes.raster import paint
from shards.scenes.statements import PAIRS, VALUES, Statement, statement
from shards.scenes.world import CELLS, Dice, Scene, part_of, put, under_sky

NUM_THINGS = (2, 3)
"""How many things a scene shows; no fewer than are counted."""
SPLITS = ("train", "dev", "test1")
MIN_IMAGES = 2 * PAIRS * len(SPLITS)
"""One set for each split."""


class PairSet(NamedTuple):
    """Four pairs of scenes, and the statements about them."""

    number: int
    split: str
    pairs: tuple[tuple[Scene, Scene], ...]
    statements: tuple[Statement, ...]


def pair_set(seed: int, number: int) -> PairSet:
    """A set by its number: a pure function of its arguments."""
    dice = Dice(seed, number)
    split = SPLITS[part_of(number)]
    statements = tuple(statement(dice, attribute) for attribute in dice.shuffle(tuple(VALUES), "first"))
    pairs = tuple(
        (
            _scene(Dice(seed, 2 * (number * PAIRS + pair)), f"{split}-{number}-{pair}-img0", statements, pair, 0),
            _scene(Dice(seed, 2 * (number * PAIRS + pair) + 1), f"{split}-{number}-{pair}-img1", statements, pair, 1),
        )
        for pair in range(PAIRS)
    )
    return PairSet(number, split, pairs, statements)


def image_counts(num_images: int) -> Counter[str]:
    """How many images each split gets; those that would not make a whole set are left out."""
    return whole_groups(num_images, 2 * PAIRS, SPLITS)


def nlvr2_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set, images first: a pure function of its arguments."""
    sets = (pair_set(seed, number) for number in range(num_images // (2 * PAIRS)))
    groups = (Group(made.split, _pictures(made), statement_records(made)) for made in sets)
    return group_files(groups, {split: f"{split}.json" for split in SPLITS})


def _pictures(made: PairSet) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    return ((scene.image_id, paint(scene)) for pair in made.pairs for scene in pair)


def statement_records(made: PairSet) -> Iterator[dict[str, Any]]:
    """The lines of `dev.json`: one for each statement and pair."""
    for place, said in enumerate(made.statements):
        for pair, ((left, right), label) in enumerate(zip(made.pairs, said.labels, strict=True)):
            yield {
                "validation": {"0": str(label)},
                "sentence": said.text,
                "left_url": f"images/{left.image_id}.png",
                "writer": "0",
                "label": str(label),
                "right_url": f"images/{right.image_id}.png",
                "synset": said.values[0],
                "query": " ".join(said.values),
                "identifier": f"{made.split}-{made.number}-{pair}-{place}",
                "extra_validations": {},
            }


def _scene(dice: Dice, image_id: str, statements: tuple[Statement, ...], pair: int, side: int) -> Scene:
    """A scene in which what the statements speak of occurs as often as they need it."""
    counts = {said.attribute: dict(zip(said.values, said.pairs[pair][side], strict=True)) for said in statements}
    number = dice.pick(NUM_THINGS, "number of things")
    values = {attribute: _values(dice, attribute, counts[attribute], number) for attribute in VALUES}
    cells = dice.shuffle(CELLS, "cells")
    things = tuple(
        put(dice, place, f"{image_id}-{place}", values["shape"][place], values["color"][place], cells[place])
        for place in range(number)
    )
    return under_sky(dice, image_id, things)


def _values(dice: Dice, attribute: str, counts: dict[str, int], number: int) -> list[str]:
    """Each mentioned value as often as it is counted; the other things have other values."""
    wanted = [value for value, count in counts.items() for _ in range(count)]
    others = [value for value in VALUES[attribute] if value not in counts]
    wanted += [dice.pick(others, attribute, "other", place) for place in range(number - len(wanted))]
    return dice.shuffle(wanted, attribute, "things")
