"""How much of a model's attention lies on the objects that a question is about: GQA's grounding score of a question.

The score is the sum, over regions and over cells of attention, of the attention times the part of the cell that the
region covers. Regions and cells are boxes (x0, y0, x1, y1) in parts of the image, 0 to 1. As in GQA's evaluation script
a region counts as often as it is named: an object that both the question and its full answer mention counts twice, and
a score can exceed 1.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def map_scores(maps: Floats, regions: Floats, owner: NDArray[np.int64]) -> Floats:
    """Grounding scores of Q questions with maps of m x m attentions.

    Args:
        maps: (Q, m, m) attention by cell; the first index counts cells along x, from the left.
        regions: (R, 4) boxes of all questions.
        owner: (R,) the question, 0 .. Q - 1, of each.

    Returns:
        (Q,) scores, parts of 1.
    """
    side = maps.shape[-1]
    along_x = _covered_lengths(regions[:, 0], regions[:, 2], side)
    along_y = _covered_lengths(regions[:, 1], regions[:, 3], side)
    on_region = ((along_x[:, None, :] @ maps[owner])[:, 0] * along_y).sum(axis=1)
    return np.bincount(owner, weights=on_region, minlength=len(maps))


def map_cells(map_: Floats) -> Floats:
    """A map of m x m attentions as (m * m, 5): box and attention of each cell, the first index along x."""
    side = len(map_)
    x, y = (index.ravel() for index in np.indices((side, side)))
    return np.stack([x / side, y / side, (x + 1) / side, (y + 1) / side, map_.ravel()], axis=1)


def cells_score(cells: Floats, regions: Floats, *, overlaps_once: bool = False) -> float:
    """Grounding score of one question.

    Args:
        cells: (C, 5) boxes with an area, and the attention of each.
        regions: (K, 4) boxes.
        overlaps_once: count what several regions cover only once; costs some tens of microseconds.
    """
    boxes, attention = cells[:, :4], cells[:, 4]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    covered = _union_areas(boxes, regions) if overlaps_once else _summed_areas(boxes, regions)
    return float((attention * covered / area).sum())


def _covered_lengths(low: Floats, high: Floats, side: int) -> Floats:
    """(R, side): which part of each of `side` equal intervals of 0 .. 1 the intervals low .. high cover."""
    edges = np.arange(side + 1) / side
    lengths = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return np.maximum(lengths, 0.0) * side


def _summed_areas(boxes: Floats, regions: Floats) -> Floats:
    """(C,): the areas that each box shares with each region, summed over regions."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    return np.maximum(high - low, 0.0).prod(axis=2).sum(axis=1)


def _union_areas(boxes: Floats, regions: Floats) -> Floats:
    """(C,): the area that each box shares with the union of all regions.

    All edges together cut the image into rectangles that each box and each region covers whole or not at all.
    """
    x_steps, boxes_x, regions_x = _covered_steps(boxes[:, [0, 2]], regions[:, [0, 2]])
    y_steps, boxes_y, regions_y = _covered_steps(boxes[:, [1, 3]], regions[:, [1, 3]])
    in_union = (regions_x.T.astype(np.float64) @ regions_y) > 0
    return ((boxes_x * x_steps) @ in_union * (boxes_y * y_steps)).sum(axis=1)


def _covered_steps(boxes: Floats, regions: Floats) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Steps between neighbouring edges of intervals (n, 2), and which of them each interval covers."""
    edges = np.unique(np.concatenate([boxes.ravel(), regions.ravel()]))
    starts = edges[:-1]
    covers = [(rows[:, :1] <= starts) & (starts < rows[:, 1:]) for rows in (boxes, regions)]
    return np.diff(edges), covers[0], covers[1]
