"""Statements about two scenes, each with what four pairs of scenes must hold for it to be true of exactly two.

A statement speaks of one or two shapes, or colors. What decides it is how often these occur in the left scene and in
the right one, and most families make their four pairs a square: two counts on the left, two on the right, true on one
diagonal. Then either scene alone says nothing at all; of `both` and `more` it says half of what there is to say.
"""

from collections.abc import Callable
from typing import NamedTuple

from shards.scenes.asked import with_article
from shards.scenes.world import COLORS, SHAPES, Dice

PAIRS = 4
"""Pairs of scenes per statement, as in NLVR2; two of them are true."""
MAX_COUNT = 2
"""No shape or color that a statement speaks of occurs more often in a scene."""

Counts = tuple[int, ...]
"""How often each mentioned value occurs in a scene."""
Row = tuple[Counts, Counts]
"""The counts of the left scene and of the right one."""

NUMBERS = ("no", "one", "two", "three")
VALUES: dict[str, tuple[str, ...]] = {"shape": SHAPES, "color": tuple(COLORS)}


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


def both(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """Half of what decides it is in either scene: who sees none on one side knows that it is false."""
    a, b, c, d = (_some(dice, attribute, place) for place in range(4))
    true = [((a,), (b,)), ((c,), (d,))]
    return f"Both images show {_one(attribute, values[0])}.", 1, true, [((0,), (b,)), ((c,), (0,))]


def more(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """More on the left or more on the right; as many on both sides is not more."""
    left = dice.pick((True, False), attribute, "more on the left")
    true = dice.shuffle([((1,), (0,)), ((2,), (1,)), ((2,), (0,))], attribute, "more")[:2]
    false = dice.shuffle([((0,), (1,)), ((1,), (2,)), ((1,), (1,))], attribute, "not more")[:2]
    if not left:
        true, false = ([(right, left) for left, right in rows] for rows in (true, false))
    side, other = ("left", "right") if left else ("right", "left")
    return f"The {side} image shows more {_many(attribute, values[0])} than the {other} one.", 1, true, false


def at_least(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """A number of things in both scenes, or more."""
    number = dice.pick((2, 3), attribute, "at least")
    rows = [((left,), (right,)) for left in range(MAX_COUNT + 1) for right in range(MAX_COUNT + 1)]
    true = [row for row in rows if row[0][0] + row[1][0] in (number, number + 1)]
    false = [row for row in rows if row[0][0] + row[1][0] in (number - 1, number - 2)]
    true, false = (dice.shuffle(some, attribute, "at least", place)[:2] for place, some in enumerate((true, false)))
    things = f"There are at least {NUMBERS[number]} {_many(attribute, values[0])} in the two images together."
    return things, 1, true, false


def together(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """A number of things in both scenes."""
    number = dice.pick((1, 2, 3), attribute, "number")
    first, second = dice.shuffle([n for n in range(MAX_COUNT + 1) if 0 <= number - n <= MAX_COUNT], attribute, "on")[:2]
    things = f"is exactly {_one(attribute, values[0], 'one')}"
    if number > 1:
        things = f"are exactly {NUMBERS[number]} {_many(attribute, values[0])}"
    return (
        f"There {things} in the two images together.",
        1,
        *_square((first, second), (number - first, number - second)),
    )


def equally_many(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """The same number on both sides, which may be none."""
    counts = tuple(dice.shuffle(range(MAX_COUNT + 1), attribute, "counts")[:2])
    return f"The two images show equally many {_many(attribute, values[0])}.", 1, *_square(counts, counts)


def only_one(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """On one side and not on the other."""
    left, right = _some(dice, attribute, 0), _some(dice, attribute, 1)
    return f"Only one of the images shows {_one(attribute, values[0])}.", 1, *_square((left, 0), (0, right))


def one_and_other(dice: Dice, attribute: str, values: tuple[str, ...]) -> Family:
    """Each scene has one of two values, and not the same one."""
    a, b, c, d = (_some(dice, attribute, place) for place in range(4))
    true = [((a, 0), (0, b)), ((0, c), (d, 0))]
    text = f"One image shows {_one(attribute, values[0])} and the other {_one(attribute, values[1])}."
    return text, 2, true, [((a, 0), (d, 0)), ((0, c), (0, b))]


FAMILIES: tuple[Callable[[Dice, str, tuple[str, ...]], Family], ...] = (
    both,
    more,
    at_least,
    together,
    equally_many,
    only_one,
    one_and_other,
)


def _square(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[Rows, Rows]:
    """Two counts on each side, in all four ways: those that belong together are true."""
    pairs = [[((a,), (b,)) for b in right] for a in left]
    return [pairs[0][0], pairs[1][1]], [pairs[0][1], pairs[1][0]]


def _some(dice: Dice, attribute: str, place: int) -> int:
    return dice.pick(range(1, MAX_COUNT + 1), attribute, "some", place)


def _one(attribute: str, value: str, number: str = "") -> str:
    words = value if attribute == "shape" else f"{value} thing"
    return f"{number} {words}" if number else with_article(words)


def _many(attribute: str, value: str) -> str:
    if attribute == "color":
        return f"{value} things"
    return f"{value}es" if value.endswith("s") else f"{value}s"
