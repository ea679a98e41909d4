"""Hypotheses about scenes with a curtain in SNLI-VE's own format; the text alone is right one time in three.

A curtain hides one cell of the scene. A hypothesis says what one of its shapes looks like: what can be seen entails it
or contradicts it, and where the shape stands behind the curtain it is open. Every hypothesis is asked of the three
scenes of its triple and has a different label in each.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.annotations.snli_ve import LABELS
from shards.scenes.groups import Group, group_files, whole_groups
from shards.scenes.hypotheses import Curtained, Hypothesis, hypotheses
from shards.scenes.raster import paint
from shards.scenes.world import CELL_SIZE, CELLS, COLORS, SHAPES, SIZES, Dice, part_of, put, under_sky

TRIPLE = 3
CURTAIN = ((120, 70, 45), (165, 105, 70))
"""The colors of its folds."""
FOLD = 4
"""Pixels."""
SPLITS = ("train", "dev", "test")
MIN_IMAGES = TRIPLE * len(SPLITS)
"""One triple for each split."""


class Triple(NamedTuple):
    """Three scenes, each with the curtain elsewhere, and the hypotheses that they share."""

    split: str
    scenes: tuple[Curtained, ...]
    hypotheses: tuple[Hypothesis, ...]


def triple(seed: int, number: int) -> Triple:
    """A triple by its number: a pure function of its arguments."""
    dice = Dice(seed, number)
    shape, hidden = dice.pick(SHAPES, "shape"), dice.pick(range(TRIPLE), "hidden")
    colors, sizes = dice.shuffle(tuple(COLORS), "colors"), dice.shuffle(tuple(SIZES), "sizes")
    scenes = tuple(
        _curtained(
            Dice(seed, number * TRIPLE + place),
            shape,
            colors[place],
            sizes[(place - (place > hidden)) % 2],
            is_hidden=place == hidden,
        )
        for place in range(TRIPLE)
    )
    return Triple(SPLITS[part_of(number)], scenes, tuple(hypotheses(scenes, shape)))


def image_counts(num_images: int) -> Counter[str]:
    """How many images each split gets; those that would not make a whole triple are left out."""
    return whole_groups(num_images, TRIPLE, SPLITS)


def snli_ve_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set, images first: a pure function of its arguments."""
    triples = (triple(seed, number) for number in range(num_images // TRIPLE))
    groups = (Group(made.split, _pictures(made), hypothesis_records(made)) for made in triples)
    return group_files(groups, {split: f"snli_ve_{split}.jsonl" for split in SPLITS})


def _pictures(made: Triple) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    return ((curtained.scene.image_id, draw(curtained)) for curtained in made.scenes)


def hypothesis_records(made: Triple) -> Iterator[dict[str, Any]]:
    """The lines of `snli_ve_*.jsonl`: one for each scene and hypothesis."""
    for place, curtained in enumerate(made.scenes):
        image_id = curtained.scene.image_id
        for number, hypothesis in enumerate(made.hypotheses):
            label = hypothesis.labels[place]
            yield {
                "Flickr30K_ID": image_id,
                "annotator_labels": [label] * 5,
                "captionID": f"{image_id}.jpg#0",
                "gold_label": label,
                "pairID": f"{image_id}.jpg#0r{number}{label[0]}",
                "sentence1": "",
                "sentence2": hypothesis.text,
            }


def draw(curtained: Curtained) -> NDArray[np.uint8]:
    """The picture with its curtain: nothing of what lies behind can be seen."""
    pixels = paint(curtained.scene)
    column, row = curtained.covered
    x, y = column * CELL_SIZE, row * CELL_SIZE
    for fold in range(0, CELL_SIZE, FOLD):
        pixels[y : y + CELL_SIZE, x + fold : x + fold + FOLD] = CURTAIN[fold // FOLD % len(CURTAIN)]
    return pixels


def _curtained(dice: Dice, shape: str, color: str, size: str, *, is_hidden: bool) -> Curtained:
    """A scene of two things, one of them of this look, with a curtain over that one or elsewhere."""
    image_id = f"{dice.image:010d}"
    cell, other_cell, *free = dice.shuffle(CELLS, "cells")
    other_shape = dice.pick([name for name in SHAPES if name != shape], "other shape")
    other_color = dice.pick(tuple(COLORS), "other color")
    named = put(dice, 0, f"{image_id}0", shape, color, cell)._replace(size=size)
    things = (named, put(dice, 1, f"{image_id}1", other_shape, other_color, other_cell))
    covered = cell if is_hidden else dice.pick((other_cell, *free), "covered")
    return Curtained(under_sky(dice, image_id, things), covered)


assert len(LABELS) == TRIPLE
