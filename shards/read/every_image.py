"""Every image of some shards in their order, for an encoder whose tokens are to be kept."""

import numpy as np

from shards.plan import Ints
from shards.read.collate import Shown, stacked
from shards.read.collation import Collation
from shards.read.micro_batches import MicroBatches, Split

Key = tuple[int, int, int]
"""Number of a shard, and the first of its images and the one behind the last."""


class EveryImage(MicroBatches):
    """Images by (shard, first, last), also those that nothing is asked about: what a batch of them shows.

    Args:
        keys: of all batches, in the order in which they will be asked for.
    """

    def __init__(self, split: Split, collation: Collation, image_size: int | None, keys: list[Key]) -> None:
        self.split, self.eyes = split, collation.eyes(split.index, image_size)
        self._collation, self._order = collation, list(dict.fromkeys(shard for shard, _, _ in keys))

    @property
    def modules(self) -> set[str]:
        return {__name__, *self._collation.modules}

    def position(self, shard: int, first: int, last: int) -> int:  # noqa: ARG002 - a shard is a position
        return self._order.index(shard)

    @property
    def length(self) -> int:
        return len(self._order)

    def shards_at(self, position: int) -> Ints:
        return np.array(self._order[position % self.length : position % self.length + 1])

    def prepare(self, shard: int, first: int, last: int) -> Shown:
        """What images `first` to `last` - 1 of a shard show, stacked."""
        self._expect(shard, first, last)
        seen = []
        for sample in self.split.index.samples_in(shard):
            images = self.split.index.images_of(sample)
            wanted = range(max(first, images.start), min(last, images.stop))
            if wanted:
                seen += self._images(sample, None, [image - images.start for image in wanted])
        return stacked(seen)


def batches_of(shard: int, images: int, size: int) -> list[Key]:
    """The keys of all images of a shard, so many at a time."""
    return [(shard, first, min(first + size, images)) for first in range(0, images, size)]
