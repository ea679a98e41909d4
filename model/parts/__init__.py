"""The parts that a loss can have: PARTS is the only list of them, in the order in which they are added up.

The file of its name here makes a part of the loss over a fusion, and another objective computes its own; `losses` in
a recipe weighs it.
"""

from collections.abc import Collection
from typing import NamedTuple


class PartSums(NamedTuple):
    """What a part adds up over micro-batches, steps and ranks."""

    names: tuple[str, ...]
    """The first is that of its loss, summed over items; the second, the weight of those items."""
    seen: tuple[str, ...] = ()
    """Those that add up to what `<part>_correct` is a part of; empty where nothing is right or wrong."""


PARTS: dict[str, PartSums] = {
    "answer": PartSums(("answer_loss", "answered")),
    "itm": PartSums(
        ("itm_loss", "matched", "itm_positives", "itm_negatives", "itm_correct"),
        seen=("itm_positives", "itm_negatives"),
    ),
    "classify": PartSums(("classify_loss", "classified")),
    "retrieve": PartSums(("retrieve_loss", "retrieved")),
    "page": PartSums(("page_loss", "paged")),
}


def sum_names(parts: Collection[str]) -> tuple[str, ...]:
    """The sums of these parts, in the order of PARTS."""
    return tuple(name for part, sums in PARTS.items() if part in parts for name in sums.names)
