"""What a task measures, and the file that it hands in."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

from model.config import LossConfig
from shards.format.index import SplitIndex
from shards.tasks.seam import Item
from trainer.scoring.metrics import Scores, Share
from trainer.scoring.task import ScoreTask

Json = Any
"""A value that JSON can hold."""

_Item = TypeVar("_Item", bound=Item)


class Outputs(NamedTuple):
    """What a model says to the items of a micro-batch; None where it has not learnt to."""

    answers: Sequence[str] | None = None
    """Written or chosen, one for each item."""
    classes: Sequence[str] | None = None
    """The names of the most likely classes, one for each item."""
    vocabulary: Collection[str] = frozenset()
    """Every class that there is."""
    pages: Sequence[Sequence[int]] | None = None
    """Of each item, the places of its pages in its window, the most likely first."""
    probabilities: Sequence[float] | None = None
    """Of what is said to each item, by the model."""


def paired(items: Sequence[_Item], said: Sequence[str] | None) -> list[tuple[_Item, str]]:
    """Each item with what the model says to it; an empty micro-batch has a dummy row, which no item belongs to."""
    return list(zip(items, said or (), strict=False))


@dataclass(frozen=True)
class Submission:
    """A file of predictions as the task's server or script takes it."""

    ending: str
    """Of its name, such as `json`."""
    pieces: Iterable[bytes]
    """Its bytes, to be gone through once: half a million questions have 40 MB, ten million 1 GB."""

    @property
    def content(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Json]], *, indent: int = 1, end: str = "\n", **options: Any) -> Self:
        """A JSON array, as `json.dumps` of all rows writes it.

        Args:
            end: what stands behind it.
            options: those of `json.dumps`.
        """

        def pieces() -> Iterator[bytes]:
            number = 0
            for number, row in enumerate(rows, start=1):
                alone = json.dumps([row], indent=indent, **options)
                yield f"{'[' if number == 1 else ','}{alone[1:-2]}".encode()
            yield f"{'[' if number == 0 else chr(10)}]{end}".encode()

        return cls("json", pieces())


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, as far as measuring goes."""

    scores: Callable[[], list[Scores]]
    """Empty scores, whose sums and counts merge over ranks."""
    observe: Callable[[list[Scores], Sequence[Item], Outputs, bool], dict[str, Json]]
    """(scores, items, outputs, detailed) -> predictions by item id; counts those whose truth is known. `detailed` also
    counts what few look at during training."""
    dump: Callable[[Mapping[str, Json]], Submission]
    """Predictions by item id as the file to hand in."""
    metrics: Callable[[LossConfig], tuple[str, ...]]
    """Names, without their split, of what validations can measure beside the losses of the parts; `accuracy` leads."""
    measured: Callable[[SplitIndex], frozenset[str]]
    """Those of them that the items of a split lead to: a type without questions has no accuracy."""
    headline: tuple[tuple[str, str], ...]
    """(label, metric without its split) of what a validation's line shows in percent."""
    conclude: Callable[[Mapping[str, Json]], list[Share]] | None = None
    """Predictions of a whole split by item id -> what no part of it could tell. Called on one rank."""
    official: ScoreTask | None = None
    """The official scores of any system's file, for `duoflow score`."""
    recipe: str
    """One to begin with."""
    files: str
    """What `shards build` takes of its first format, for messages; `{split}` stands for the split."""
