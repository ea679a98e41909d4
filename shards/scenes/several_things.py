"""What sets of pictures with several things share: free places, and the files of pictures with their questions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.scenes.gqa_format import json_members, json_object
from shards.scenes.raster import encode_png
from shards.scenes.world import Dice

Center = tuple[int, int]
"""x, y in pixels."""


class Question(NamedTuple):
    """A question before it has an id."""

    text: str
    answer: str
    semantic: str
    """GQA's semantic type, which stands for what is needed to answer."""
    topic: str
    """What is asked: the global group."""


class Picture(NamedTuple):
    """A picture with what is asked about it."""

    split: str
    number: int
    pixels: NDArray[np.uint8]
    asked: list[Question]


def free_center(dice: Dice, place: int, centers: Sequence[int], gap: int, taken: Sequence[Center]) -> Center:
    """Where a thing of a picture may lie: at least `gap` pixels from all others in one direction.

    Half a dozen squares of that size must not fill the picture: a free place is then found sooner or later.

    Args:
        place: the number of the thing.
        centers: what a centre may be on either axis.
        taken: centres of the things before it.
    """
    tried = 0
    while True:
        x, y = dice.pick(centers, "x", place, tried), dice.pick(centers, "y", place, tried)
        if all(max(abs(x - other_x), abs(y - other_y)) >= gap for other_x, other_y in taken):
            return x, y
        tried += 1


def several_things_files(pictures: Iterable[Picture], splits: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every image, then of every split's questions in GQA's format."""
    lines: dict[str, list[bytes]] = {split: [] for split in splits}
    for picture in pictures:
        image_id = f"{picture.number:07d}"
        yield f"images/{image_id}.png", encode_png(picture.pixels)
        lines[picture.split].extend(json_members(question_records(image_id, picture.asked)))
    for split in splits:
        yield f"{split}_questions.json", json_object(lines[split])


def question_records(image_id: str, asked: list[Question]) -> dict[str, dict[str, Any]]:
    """The entries of GQA's `*_questions.json`."""
    return {
        f"{image_id}{number:02d}": {
            "semantic": [],
            "entailed": [],
            "equivalent": [],
            "question": question.text,
            "imageId": image_id,
            "isBalanced": True,
            "groups": {"global": question.topic, "local": f"{question.topic}-{question.answer}"},
            "answer": question.answer,
            "semanticStr": "",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"structural": "query", "semantic": question.semantic, "detailed": question.topic},
            "fullAnswer": "",
        }
        for number, question in enumerate(asked)
    }
