"""Which shards are needed when, from the plan alone: what to fetch ahead, and how much room a machine needs."""

from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Protocol

import numpy as np

from shards.errors import ConfigError
from shards.format.index import SplitIndex
from shards.plan import EpochOrder, Ints, Share, in_first_order

_SAMPLED_STEPS = 512
"""Steps of an epoch at which its needs are looked at: lanes take many to go through a block."""


class Route(Protocol):
    """The way through a split, in positions: numbers of steps, or of micro-batches."""

    @property
    def length(self) -> int:
        """Positions until everything has been needed once."""
        ...

    def shards_at(self, position: int) -> Ints:
        """The shards that a position needs, in the order of need; those behind the last one are of the next pass."""
        ...


def shards_in_order(order: EpochOrder, share: Share, first_step: int = 0) -> list[int]:
    """The shards that a rank reads from a step to the end of an epoch, in the order in which it first needs them."""
    steps = [order.shards_in_step(step, share) for step in range(first_step, order.num_steps)]
    return in_first_order(np.concatenate([np.zeros(0, np.int64), *steps])).tolist()


class Window:
    """The shards of a route from where it is: those needed now, and so many ahead.

    Args:
        ahead: the number of shards beyond those that are needed now.
    """

    def __init__(self, route: Route, ahead: int) -> None:
        self._route, self._ahead = route, ahead
        self._first = 0
        self._needs: deque[list[int]] = deque()
        """The shards that each position needs, from `_first` on."""

    def move_to(self, position: int) -> list[int]:
        """Where the route is now; the shards that should be there, in the order in which they are needed from here."""
        if self._first <= position <= self._first + len(self._needs):
            for _ in range(position - self._first):
                self._needs.popleft()
        else:
            self._needs.clear()
        self._first = position
        held = dict.fromkeys(chain.from_iterable(self._needs))
        enough = len(self._route.shards_at(position)) + self._ahead
        while not self._needs or (len(held) < enough and len(self._needs) < self._route.length):
            self._needs.append(self._route.shards_at(position + len(self._needs)).tolist())
            held |= dict.fromkeys(self._needs[-1])
        return list(held)[:enough]


def bytes_at_once(order: EpochOrder, index: SplitIndex, shares: Iterable[Share]) -> int:
    """The most bytes of shards that ranks which share a machine read from at a time."""
    shares, sizes = list(shares), np.array([shard.bytes for shard in index.shards], np.int64)
    steps = np.unique(np.linspace(0, order.num_steps - 1, _SAMPLED_STEPS, dtype=np.int64))
    needs = (np.unique(np.concatenate([order.shards_in_step(int(step), share) for share in shares])) for step in steps)
    return max(int(sizes[shards].sum()) for shards in needs)


def check_cache(limit_bytes: int, place: str, order: EpochOrder, index: SplitIndex, shares: Iterable[Share]) -> None:
    """Whether a cache has room for what a machine's ranks read at a time.

    Args:
        limit_bytes: `data.cache.bytes`.
        shares: those of the ranks on this machine.

    Raises:
        ConfigError: it has not: every shard would be fetched again and again.
    """
    needed = bytes_at_once(order, index, shares)
    if limit_bytes < needed:
        raise ConfigError(
            f"data.cache.bytes: {limit_bytes} is less than the {needed} bytes of {place} that this machine's ranks "
            f"read from at once ({order.order.lanes} lanes, blocks of {order.order.shuffle_shards} shards); give it at "
            "least these, or lower data.shuffle_shards or batch.lanes"
        )
