"""Hypotheses about scenes with a curtain: those that are entailed by one scene of three, open in one, wrong in one."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shards.annotations.snli_ve import LABELS
from shards.scenes.asked import with_article
from shards.scenes.world import COLORS, SHAPES, Cell, Dice, Scene, Thing

PLACES: dict[str, Cell] = {
    "top left": (0, 0),
    "top right": (1, 0),
    "bottom left": (0, 1),
    "bottom right": (1, 1),
}
HALVES: dict[str, tuple[Cell, Cell]] = {
    "in the top half": ((0, 0), (1, 0)),
    "in the bottom half": ((0, 1), (1, 1)),
    "in the left half": ((0, 0), (0, 1)),
    "in the right half": ((1, 0), (1, 1)),
}
"""Which are also the pairs of cells that are compared."""


class Curtained(NamedTuple):
    """A scene with a thing in each cell, one of them behind the curtain."""

    scene: Scene
    covered: Cell

    @property
    def visible(self) -> dict[Cell, Thing]:
        """What can be seen, by cell."""
        cells = {(thing.column, thing.row): thing for thing in self.scene.things}
        return {cell: thing for cell, thing in cells.items() if cell != self.covered}


class Hypothesis(NamedTuple):
    """A text with its label for each scene of a triple."""

    text: str
    labels: tuple[str, ...]


def hypotheses(scenes: Sequence[Curtained], dice: Dice, most: int) -> Iterator[Hypothesis]:
    """Those that have another label in each scene, `most` of them at most; the families take turns."""
    families = [
        [Hypothesis(text, labels) for text, labels in told if set(labels) == set(LABELS)]
        for told in (_of_a_cell(scenes), _of_a_half(scenes), _of_two_cells(scenes))
    ]
    queues = [dice.shuffle(family, "hypotheses", place) for place, family in enumerate(families)]
    for _ in range(most):
        queues = [queue for queue in queues if queue]
        if not queues:
            return
        yield queues[0].pop()
        queues = [*queues[1:], queues[0]]


Told = Iterator[tuple[str, tuple[str, ...]]]


def _of_a_cell(scenes: Sequence[Curtained]) -> Told:
    """What the thing in a cell is, or what color it has."""
    for name, cell in PLACES.items():
        seen = [scene.visible.get(cell) for scene in scenes]
        for color in COLORS:
            yield f"The thing in the {name} is {color}.", _labels([thing and thing.color == color for thing in seen])
        for shape in SHAPES:
            text = f"The thing in the {name} is {with_article(shape)}."
            yield text, _labels([thing and thing.shape == shape for thing in seen])


def _of_a_half(scenes: Sequence[Curtained]) -> Told:
    """Whether one of two cells has such a thing; with one of them covered, only a sight of it settles that."""
    for name, cells in HALVES.items():
        seen = [[scene.visible.get(cell) for cell in cells] for scene in scenes]
        for color in COLORS:
            yield f"There is {with_article(color)} thing {name}.", _labels([_any(two, "color", color) for two in seen])
        for shape in SHAPES:
            yield f"There is {with_article(shape)} {name}.", _labels([_any(two, "shape", shape) for two in seen])


def _of_two_cells(scenes: Sequence[Curtained]) -> Told:
    """Whether the things of two neighbouring cells have the same shape or color."""
    for name, cells in HALVES.items():
        seen = [[scene.visible.get(cell) for cell in cells] for scene in scenes]
        for attribute in ("color", "shape"):
            yield f"The two things {name} have the same {attribute}.", _labels([_same(two, attribute) for two in seen])


def _any(things: Sequence[Thing | None], attribute: str, value: str) -> bool | None:
    if any(thing and getattr(thing, attribute) == value for thing in things):
        return True
    return None if None in things else False


def _same(things: Sequence[Thing | None], attribute: str) -> bool | None:
    first, second = things
    return None if first is None or second is None else getattr(first, attribute) == getattr(second, attribute)


def _labels(holds: Sequence[bool | None]) -> tuple[str, ...]:
    return tuple(LABELS[1] if so is None else LABELS[0] if so else LABELS[2] for so in holds)
