"""Visits of a step packed into micro-batches by the tokens that they are padded to: pure arithmetic over an index.

A micro-batch pads every question to its longest. Visits of like lengths side by side are padded less, and a limit on
padded tokens makes many micro-batches of short questions and few of long ones alike in memory and time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

LENGTH_MULTIPLE = 8
"""As the loader pads."""


class Lengths(NamedTuple):
    """Of some visits, side by side."""

    questions: Ints
    """(visits,)"""
    longest: Ints
    """(visits,) tokens of the longest question that a visit may have."""


def padded_tokens(lengths: Lengths, chosen: Ints) -> int:
    """Tokens that the questions of the chosen visits are padded to in one micro-batch."""
    if not len(chosen):
        return 0
    longest = -(-int(lengths.longest[chosen].max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return int(lengths.questions[chosen].sum()) * longest


def micro_batches_needed(lengths: Lengths, limit: int) -> int:
    """The fewest micro-batches of at most `limit` padded tokens, at least one; a visit beyond it has its own."""
    return max(1, len(_cuts(*_sorted(lengths)[1:], limit)))


def pack(lengths: Lengths, count: int) -> list[Ints]:
    """The visits in `count` micro-batches whose largest is as small as it can be, as places in ascending order.

    Where there are fewer visits than micro-batches, the last ones are empty.
    """
    order, questions, longest = _sorted(lengths)
    if not len(order):
        return [order] * count
    low, high = 0, int(questions.sum()) * int(longest.max())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cuts(questions, longest, middle)) <= count else (middle, high)
    cuts = _cuts(questions, longest, high)
    groups = [np.sort(part) for part in np.split(order, cuts[1:])]
    return groups + [order[:0]] * (count - len(groups))


def _sorted(lengths: Lengths) -> tuple[Ints, Sequence[int] | Ints, Sequence[int] | Ints]:
    """Places from short to long, and what stands there; ties by the number of questions, then by place."""
    order = np.lexsort((lengths.questions, lengths.longest))
    longest = -(-lengths.longest[order] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return order, lengths.questions[order], longest


def _cuts(questions: Ints, longest: Ints, limit: int) -> list[int]:
    """Where a micro-batch begins, filling each as far as the limit allows; lengths ascend, so the last is longest."""
    cuts: list[int] = []
    held = 0
    for place, (count, length) in enumerate(zip(questions.tolist(), longest.tolist(), strict=True)):
        held += count
        if not cuts or held * length > limit:
            cuts.append(place)
            held = count
    return cuts
