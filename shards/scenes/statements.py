"""Statements about two scenes, each with what four pairs of scenes must hold for it to be true of exactly two.

A statement speaks of one or two shapes, or colors. What decides it is how often these occur in the left scene and in
the right one. The words are those of the questions about single scenes, so that who has learnt to answer these can
read the statements.
"""

from collections.abc import Callable
from typing import NamedTuple

from shards.scenes.asked import with_article
from shards.scenes.world import Dice

PAIRS = 4
"""Pairs of scenes per statement, as in NLVR2; two of them are true."""
MAX_COUNT = 2
"""No shape or color that a statement speaks of occurs more often in a scene."""

Counts = tuple[int, ...]
"""How often each mentioned value occurs in a scene."""
Row = tuple[Counts, Counts]
"""The counts of the left scene and of the right one."""

VALUES: dict[str, tuple[str, ...]] = {
    "shape": ("square", "triangle", "cross", "ring"),
    "color": ("red", "green", "blue", "black"),
}
"""Fewer than there are, and colors darker than the sky: true and false are all that a small model has to learn from."""


class Statement(NamedTuple):
    """A text with the counts that make it true or false of each pair."""

    text: str
    attribute: str
    """`shape` or `color`."""
    values: tuple[str, ...]
    """The shapes or colors that it speaks of."""
    pairs: tuple[Row, ...]
    labels: tuple[bool, ...]


def statement(dice: Dice, attribute: str) -> Statement:
    """The statement of a set of pairs about shapes, or about colors."""
    family = dice.pick(FAMILIES, attribute, "family")
    values = tuple(dice.shuffle(VALUES[attribute], attribute, "values")[:2])
    text, mentioned, true, false = family(dice, attribute, values)
    order = dice.shuffle([*((row, True) for row in true), *((row, False) for row in false)], attribute, "order")
    rows, labels = zip(*order, strict=True)
    return Statement(text, attribute, values[:mentioned], rows, labels)


Rows = list[Row]
Family = tuple[str, int, Rows, Rows]
"""The text, how many values it speaks of, the counts of its true pairs and of its false ones."""


def one_side(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """What the other image shows does not matter."""
    a, b = (_some(dice, attribute, place) for place in range(2))
    left = dice.pick((True, False), attribute, "left")
    true, false = [((a,), (0,)), ((a,), (b,))], [((0,), (0,)), ((0,), (b,))]
    if not left:
        true, false = ([(other, one) for one, other in rows] for rows in (true, false))
    return f"There is {_one(attribute, values[0])} in the {'left' if left else 'right'} image.", 1, true, false


def both(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """Half of what decides it is in either scene: who sees none on one side knows that it is false."""
    a, b, c, d = (_some(dice, attribute, place) for place in range(4))
    text = f"There is {_one(attribute, values[0])} in both images."
    return text, 1, [((a,), (b,)), ((c,), (d,))], [((0,), (b,)), ((c,), (0,))]


def neither(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """Who sees one on either side knows that it is false."""
    a, b = (_some(dice, attribute, place) for place in range(2))
    text = f"There is no {_plain(attribute, values[0])} in the left image or in the right image."
    return text, 1, [((0,), (0,)), ((0,), (0,))], [((a,), (0,)), ((0,), (b,))]


def either(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """Who sees one on either side knows that it is true."""
    a, b = (_some(dice, attribute, place) for place in range(2))
    text = f"There is {_one(attribute, values[0])} in the left or in the right image."
    return text, 1, [((a,), (0,)), ((0,), (b,))], [((0,), (0,)), ((0,), (0,))]


def left_and_right(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """Another value on each side; it is false where one of them is on the wrong side."""
    a, b, c, d = (_some(dice, attribute, place) for place in range(4))
    one, other = (_one(attribute, value) for value in values)
    text = f"There is {one} in the left image and {other} in the right image."
    return text, 2, [((a, 0), (0, b)), ((c, 0), (0, d))], [((0, a), (0, b)), ((c, 0), (d, 0))]


def more(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """More on one side than on the other; as many on both is not more."""
    left = dice.pick((True, False), attribute, "more on the left")
    true = dice.shuffle([((1,), (0,)), ((2,), (1,)), ((2,), (0,))], attribute, "more")[:2]
    false = dice.shuffle([((0,), (1,)), ((1,), (2,)), ((1,), (1,))], attribute, "not more")[:2]
    if not left:
        true, false = ([(other, one) for one, other in rows] for rows in (true, false))
    side = "left" if left else "right"
    return f"There are more {_many(attribute, values[0])} in the {side} image.", 1, true, false


FAMILIES: tuple[Callable[[Dice, str, tuple[str, ...]], Family], ...] = (
    one_side,
    both,
    neither,
    either,
    left_and_right,
    more,
)


def _some(dice: Dice, attribute: str, place: int) -> int:
    return dice.pick(range(1, MAX_COUNT + 1), attribute, "some", place)


def _plain(attribute: str, value: str) -> str:
    return value if attribute == "shape" else f"{value} shape"


def _one(attribute: str, value: str) -> str:
    return with_article(_plain(attribute, value))


def _many(attribute: str, value: str) -> str:
    plain = _plain(attribute, value)
    return f"{plain}es" if plain.endswith("s") else f"{plain}s"
