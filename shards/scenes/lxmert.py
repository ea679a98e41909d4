"""Rendered scenes as LXMERT reads images: regions with features in TSV files, and questions with scores of answers.

A region's features are a fixed random projection of what stands in it (shape, color, size) with noise on top. Beside
the things stand boxes of the background, which show the sky and nothing else, until there are NUM_REGIONS of them, in
any order.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.scenes.gqa_format import questions
from shards.scenes.vqa import annotation, question_type
from shards.scenes.world import COLORS, IMAGE_SIZE, SHAPES, SIZES, Dice, Scene, Thing, scene, split_of
from shards.vqa_text import soft_scores

NUM_REGIONS = 8
WIDTH = 64
"""Numbers of a region."""
NOISE = 0.3
"""Of each number, beside those of a thing, whose three parts are from -1 to 1."""
SPLITS = ("train", "valid", "test")
MIN_IMAGES = 4
"""The first images hold one of each split."""
_SPLIT_OF = {"backbone": "train", "train": "train", "val": "valid", "testdev": "test"}
_PROJECTION = "what a detector makes of"
"""Names the columns of the projection, which is the same for every seed."""

Floats = NDArray[np.float32]
Region = tuple[tuple[float, float, float, float], Floats, int, int]
"""Box in pixels, features, and what the detector calls the thing and its attribute."""


def part_of_image(number: int) -> str:
    """The split of an image number, by LXMERT's name."""
    return _SPLIT_OF[split_of(number)]


def image_counts(num_images: int) -> Counter[str]:
    """How many images each split gets."""
    return Counter(map(part_of_image, range(num_images)))


def lxmert_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set: a pure function of its arguments."""
    asked: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    seen: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for number in range(num_images):
        dice, shown, split = Dice(seed, number), scene(seed, number), part_of_image(number)
        image_id = f"scene_{shown.image_id}"
        seen[split].append(_row(image_id, regions(shown, dice)))
        for place, question in enumerate(questions(shown, dice).values()):
            said = annotation(question, dice, place)
            record = {
                "answer_type": said["answer_type"],
                "img_id": image_id,
                "label": soft_scores([one["answer"] for one in said["answers"]]),
                "question_id": number * 1000 + place,
                "question_type": question_type(question.text),
                "sent": question.text,
            }
            asked[split].append(record)
    for split in SPLITS:
        yield f"{split}.json", b"[\n" + b",\n".join(map(msgspec.json.encode, asked[split])) + b"\n]\n"
        yield f"{split}_obj{NUM_REGIONS}.tsv", b"".join(seen[split])
    yield "answers.json", msgspec.json.encode(sorted({name for one in asked["train"] for name in one["label"]})) + b"\n"


def regions(shown: Scene, dice: Dice) -> list[Region]:
    """What a detector sees in a scene, in an order of its own."""
    found = [_thing(thing, dice, place) for place, thing in enumerate(shown.things)]
    found += [_background(shown, dice, place) for place in range(len(found), NUM_REGIONS)]
    return dice.shuffle(found, "regions")


def _thing(thing: Thing, dice: Dice, place: int) -> Region:
    half = SIZES[thing.size]
    x, y = thing.center
    box = (x - half, y - half, x + half, y + half)
    shape, color = SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1
    looks = _spread(_PROJECTION, thing.shape) + _spread(_PROJECTION, thing.color) + _spread(_PROJECTION, thing.size)
    return box, _noisy(looks, dice, place), shape, color


def _background(shown: Scene, dice: Dice, place: int) -> Region:
    corners = [sorted(dice.shuffle(range(IMAGE_SIZE + 1), "background", axis, place)[:2]) for axis in ("x", "y")]
    (left, right), (top, bottom) = corners
    return (left, top, right, bottom), _noisy(_spread(_PROJECTION, shown.weather), dice, place), 0, 0


def _noisy(looks: Floats, dice: Dice, place: int) -> Floats:
    return looks + np.float32(NOISE) * _spread(*map(str, (*dice, "noise", place)))


def _spread(*purpose: str) -> Floats:
    """(WIDTH,) numbers from -1 to 1 that belong to this purpose, the same on every machine."""
    drawn = hashlib.shake_256("/".join(purpose).encode()).digest(4 * WIDTH)
    return (np.frombuffer(drawn, "<u4") / 2**31 - 1).astype(np.float32)


def _row(image_id: str, seen: list[Region]) -> bytes:
    boxes, features, objects, attributes = zip(*seen, strict=True)
    sure = np.ones(len(seen), "<f4")
    columns = (
        *(np.asarray(objects, "<i8"), sure, np.asarray(attributes, "<i8"), sure),
        *(np.asarray(boxes, "<f4"), np.stack(features).astype("<f4")),
    )
    coded = [base64.b64encode(column.tobytes()) for column in columns]
    cells = [image_id.encode(), *([str(IMAGE_SIZE).encode()] * 2), *coded[:4], str(len(seen)).encode(), *coded[4:]]
    return b"\t".join(cells) + b"\n"
