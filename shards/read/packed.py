"""Steps whose micro-batches are packed by tokens: the same number on every rank, from the index and lengths alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from shards.micro_batches import Ints, Lengths, padded_tokens
from shards.plan import PADDING, EpochOrder, Share


class Epochs(Protocol):
    """A split, as far as its order goes."""

    epoch: Callable[[int], EpochOrder]


class PackedSteps:
    """The micro-batches of a rank by (epoch, step). Planning a step takes the visits of all ranks, and a millisecond.

    Args:
        longest: (images,) tokens of the longest question of each image.
    """

    def __init__(self, split: Epochs, share: Share, longest: Ints) -> None:
        self._split, self._share, self._longest = split, share, longest
        self._remember()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "micro_batches"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._remember()

    def _remember(self) -> None:
        self.micro_batches: Callable[[int, int], list[Ints]] = lru_cache(maxsize=4)(self._pack)

    def _pack(self, epoch: int, step: int) -> list[Ints]:
        return self._split.epoch(epoch).packed_micro_batches(step, self._share, self._longest)

    def padded_tokens(self, epoch: int, step: int) -> tuple[int, int]:
        """What the questions of a step are padded to, packed by tokens, and cut as they come into as many parts."""
        order, packed = self._split.epoch(epoch), self.micro_batches(epoch, step)
        whole = replace(self._share, micro_visits=order.order.visits_per_step // self._share.world_size)
        own = order.micro_batch(step, 0, whole)
        own = own[own != PADDING]
        lengths = Lengths(order.visits.sizes_of(own), self._longest[order.visits.images_of(own)])
        place_of = {visit: place for place, visit in enumerate(own.tolist())}
        places = [np.array([place_of[visit] for visit in group.tolist()], np.int64) for group in packed]
        in_order = np.array_split(np.arange(len(own)), len(packed))
        found, plain = (sum(padded_tokens(lengths, part) for part in parts) for parts in (places, in_order))
        return found, plain
