"""Hypotheses about scenes with a curtain: what the shape that they name looks like, if it can be seen."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shards.annotations.snli_ve import LABELS
from shards.scenes.world import Cell, Scene, Thing


class Curtained(NamedTuple):
    """A scene of which a curtain covers one cell."""

    scene: Scene
    covered: Cell

    def visible(self, shape: str) -> Thing | None:
        """The thing of a shape; None where it stands behind the curtain."""
        (thing,) = (thing for thing in self.scene.things if thing.shape == shape)
        return None if (thing.column, thing.row) == self.covered else thing


class Hypothesis(NamedTuple):
    """A text with its label for each scene of a triple."""

    text: str
    labels: tuple[str, ...]


def hypotheses(scenes: Sequence[Curtained], shape: str) -> Iterator[Hypothesis]:
    """What a shape looks like in one of the scenes, said of all of them: it is entailed where it looks so, contradicted
    where it looks otherwise, and open where the shape stands behind the curtain.

    Args:
        scenes: with the shape in each of them, behind the curtain in one, and of two looks in the others.
    """
    things = [curtained.visible(shape) for curtained in scenes]
    for attribute in ("color", "size"):
        looks = [None if thing is None else getattr(thing, attribute) for thing in things]
        for look in sorted({look for look in looks if look is not None}):
            yield Hypothesis(f"The {shape} is {look}.", tuple(_label(look, seen) for seen in looks))


def _label(look: str, seen: str | None) -> str:
    entailed, open_, contradicted = LABELS
    return open_ if seen is None else entailed if seen == look else contradicted
