"""Hypotheses about scenes with a curtain in SNLI-VE's own format; the text alone is right one time in three.

A curtain hides one cell of the scene. What can be seen entails a hypothesis or contradicts it, and what lies behind the
curtain leaves it open. Every hypothesis is asked of the three scenes of its triple and has a different label in each.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.scenes.hypotheses import LABELS, Cell, Curtained, Hypothesis, hypotheses
from shards.scenes.raster import encode_png, paint
from shards.scenes.world import CELL_SIZE, COLORS, SHAPES, SKIES, Dice, Scene, part_of, put, varied

CELLS: tuple[Cell, ...] = ((0, 0), (1, 0), (0, 1), (1, 1))
TRIPLE = 3
MAX_HYPOTHESES = 6
"""Per triple, and so per scene."""
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
    covered = dice.shuffle(CELLS, "curtains")
    scenes = tuple(Curtained(_scene(Dice(seed, number * TRIPLE + place)), covered[place]) for place in range(TRIPLE))
    told = tuple(hypotheses(scenes, dice, MAX_HYPOTHESES))
    return Triple(SPLITS[part_of(number)], scenes, told)


def image_counts(num_images: int) -> Counter[str]:
    """How many images each split gets; those that would not make a whole triple are left out."""
    counts = Counter(SPLITS[part_of(number)] for number in range(num_images // TRIPLE))
    return Counter({split: TRIPLE * count for split, count in counts.items()})


def snli_ve_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set, images first: a pure function of its arguments."""
    lines: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for number in range(num_images // TRIPLE):
        made = triple(seed, number)
        for curtained in made.scenes:
            yield f"images/{curtained.scene.image_id}.png", encode_png(draw(curtained))
        lines[made.split] += map(msgspec.json.encode, hypothesis_records(made))
    for split in sorted(SPLITS):
        yield f"snli_ve_{split}.jsonl", b"".join(line + b"\n" for line in lines[split])


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


def _scene(dice: Dice) -> Scene:
    """A scene with a thing in each cell."""
    image_id = f"{dice.image:010d}"
    things = tuple(
        put(dice, place, f"{image_id}{place}", dice.pick(SHAPES, "shape", place), dice.pick(tuple(COLORS), place), cell)
        for place, cell in enumerate(CELLS)
    )
    weather = dice.pick(tuple(SKIES), "weather")
    return Scene(image_id, weather, varied(dice, SKIES[weather], "sky"), things)


assert len(LABELS) == TRIPLE
