"""Attentions over an image, read from a file and scored by how much of them lies where the question is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.annotations.json_blocks import iterate_array
from shards.errors import DataError
from trainer.scoring.gqa.grounding import cells_score, map_cells, map_scores
from trainer.scoring.gqa.questions import QuestionSet, Regions, refuse_unseen, scored_places
from trainer.scoring.gqa.scenes import Advance

BEYOND_THE_IMAGE = 0.01
"""How far a box of attention may leave the image; further out, its numbers are not parts of the image."""

Floats = NDArray[np.float64]


class _Attention(msgspec.Struct, rename="camel"):
    question_id: str
    attention: list[list[float]]


class AttentionForm(NamedTuple):
    """How the attentions of a file are to be read."""

    object_boxes: bool = False
    """[[x0, y0, x1, y1, attention], ...] instead of a map."""
    rows_first: bool = False
    """The first index of a map counts rows; in the official script it counts along x."""
    overlaps_once: bool = False
    """Attention on what several regions cover counts once; in the official script, once for each."""


def read_attentions(path: Path, questions: QuestionSet, advance: Advance, form: AttentionForm) -> Floats:
    """The grounding score of each scored question, from [{"questionId": "...", "attention": [[...], ...]}, ...].

    Args:
        questions: with regions.

    Returns:
        (M,) parts of 1.

    Raises:
        DataError: broken JSON (byte offset), an attention of another form, or a scored question without one.
    """
    assert questions.regions is not None
    scores = np.zeros(len(questions.columns.scored))
    seen = np.zeros(len(scores), dtype=bool)
    side = 0
    for block in iterate_array(path, _Attention, advance):
        places = scored_places(questions, [entry.question_id for entry in block])
        entries = [entry for entry, place in zip(block, places.tolist(), strict=True) if place >= 0]
        if entries:
            side = side or len(entries[0].attention)
            regions = [_regions_of(questions.regions, place) for place in places[places >= 0].tolist()]
            scores[places[places >= 0]] = _scores(path, entries, regions, form, side)
            seen[places[places >= 0]] = True
    refuse_unseen(path, "attention", seen, questions)
    return scores


def _scores(
    path: Path, entries: Sequence[_Attention], regions: Sequence[Floats], form: AttentionForm, side: int
) -> Floats:
    if form.object_boxes:
        cells = [_object_cells(path, entry) for entry in entries]
    else:
        maps = np.asarray([_square(path, entry, side) for entry in entries], dtype=np.float64)
        maps = maps.swapaxes(1, 2) if form.rows_first else maps
        if not form.overlaps_once:
            owner = np.repeat(np.arange(len(regions)), [len(boxes) for boxes in regions])
            return map_scores(maps, np.concatenate(regions), owner)
        cells = [map_cells(map_) for map_ in maps]
    pairs = zip(cells, regions, strict=True)
    return np.asarray([cells_score(own, boxes, overlaps_once=form.overlaps_once) for own, boxes in pairs])


def _regions_of(regions: Regions, place: int) -> Floats:
    return regions.boxes[regions.starts[place] : regions.starts[place + 1]]


def _square(path: Path, entry: _Attention, side: int) -> list[list[float]]:
    rows = entry.attention
    if not rows or len(rows) != side or any(len(row) != side for row in rows):
        found = f"{len(rows)} x {len(rows[0])}" if rows else "empty"
        raise DataError(
            f"{path}: attention of question {entry.question_id!r} is {found}; expected maps of one size, here "
            f"{side} x {side}; boxes [x0, y0, x1, y1, attention] need --object-features"
        )
    return rows


def _object_cells(path: Path, entry: _Attention) -> Floats:
    where = f"{path}: attention of question {entry.question_id!r}"
    if any(len(row) != 5 for row in entry.attention):
        raise DataError(f"{where}: expected boxes [x0, y0, x1, y1, attention], as --object-features says")
    cells = np.asarray(entry.attention, dtype=np.float64).reshape(-1, 5)
    low, high = cells[:, :2], cells[:, 2:4]
    if (low < -BEYOND_THE_IMAGE).any() or (high > 1 + BEYOND_THE_IMAGE).any() or (low >= high).any():
        raise DataError(
            f"{where}: a box without area, or not inside 0 ... 1; expected x0 < x1 and y0 < y1 in parts of the image"
        )
    return cells
