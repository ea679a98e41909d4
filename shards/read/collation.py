"""What a model makes of the visits of a micro-batch: the seam between the loader and the tensors that a forward takes.

An implementation is pickled into loader workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol, Self

import torch

from shards.format.index import SplitIndex
from shards.format.records import Picture
from shards.read.collate import Layout, Shown, collate
from shards.read.eyes import Eyes, eyes_for
from shards.tasks.seam import Row


class SeenVisit(NamedTuple):
    """A visit as it was read."""

    images: Sequence[Shown]
    """What each of its images shows: those of its sample, or of a task without a fixed number those that its rows
    name."""
    rows: Mapping[str, Sequence[Row]]
    """By block; the images of a row are positions in `images`."""
    num_items: int
    where: str
    """What to call it in a message."""
    pages: Sequence[Picture] = ()
    """What the annotations say of each of its images, of a task without a fixed number of them."""


class AnyBatch(Protocol):
    """The tensors of a micro-batch, of whatever form."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device; from pinned memory the copies do not block."""
        ...

    def with_images_exchanged(self, num_samples: int, before: Self | None = None) -> Self | None:
        """The same texts, each shown the images of another of its samples, or of the batch in front where it has one
        sample; None where those cannot change places."""
        ...


class Collated(NamedTuple):
    """A micro-batch."""

    batch: AnyBatch
    items_cut: int
    """How many of its items were cut at the limit of tokens."""


class Collation(Protocol):
    """What visits become."""

    @property
    def modules(self) -> set[str]:
        """What a process that collates imports."""
        ...

    def eyes(self, index: SplitIndex, image_size: int | None) -> Eyes | None:
        """How the images of a split are seen; None where they are not looked at, and need not be read.

        Args:
            image_size: side of squares in pixels, where those are what is seen.
        """
        ...

    def collate(
        self, visits: Sequence[SeenVisit], *, loss_scale: float, eyes: Eyes | None, blanks: int, answering: bool
    ) -> Collated:
        """One micro-batch; every rank must run the same layers, so that one without visits is filled up.

        Args:
            loss_scale: what the sums over items are multiplied with.
            blanks: images of a sample of which there is none.
            answering: whether its questions will be answered, which training does not.

        Raises:
            DataError: what a visit shows or asks does not go into the model; the message says where.
        """
        ...


@dataclass(frozen=True)
class BlockCollation:
    """Images that are stacked, and blocks of rows that each read one of them."""

    layouts: Mapping[str, Layout]
    """The blocks that a model reads."""

    @property
    def modules(self) -> set[str]:
        """See `Collation.modules`."""
        return {__name__, *(type(layout.codec).__module__ for layout in self.layouts.values())}

    def eyes(self, index: SplitIndex, image_size: int | None) -> Eyes:
        """Squares of pixels, or regions."""
        return eyes_for(index, image_size)

    def collate(
        self,
        visits: Sequence[SeenVisit],
        *,
        loss_scale: float,
        eyes: Eyes,
        blanks: int,
        answering: bool,  # noqa: ARG002 - the blocks are those of training
    ) -> Collated:
        """See `shards.read.collate.collate`."""
        batch, cut = collate(
            [shown for visit in visits for shown in visit.images],
            [visit.rows for visit in visits],
            self.layouts,
            items_per_visit=[visit.num_items for visit in visits],
            loss_scale=loss_scale,
            blank=eyes.blank,
            images_per_visit=[len(visit.images) for visit in visits] or [blanks],
        )
        return Collated(batch, cut)


def first_images(visits: Sequence[SeenVisit]) -> list[int]:
    """The number of the first image of each visit among those of all of them."""
    return [0, *accumulate(len(visit.images) for visit in visits)][:-1]
