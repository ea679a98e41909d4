"""Open shards: descriptors by name, few enough for every process, and closed with whoever has opened them."""

import os
import weakref
from collections.abc import Set
from pathlib import Path

from shards.format.index import Shard

OPEN_SHARDS = 256
"""Shards kept open per reader. An epoch goes through up to lanes x shuffle_shards of them at a time (64 x 8), and
opening one again costs little; but a process that reads a training and a validation split has 1,024 descriptors, where
nobody raised that limit, for everything."""


class ShardFiles:
    """The shards of a directory; safe to hand to worker processes (files open on first use)."""

    def __init__(self, directory: str | Path) -> None:
        self.directory, self._path = directory, str(Path(directory))
        self._open: dict[str, int] = {}
        """Shard -> descriptor; the one used last stands last."""
        weakref.finalize(self, close_all, self._open)

    def __reduce__(self) -> tuple:
        return ShardFiles, (self.directory,)

    def place(self, shard: Shard) -> str:
        """Where a shard is, for messages."""
        return f"{self._path}/{shard.name}"

    def descriptor(self, shard: Shard) -> int:
        """An open file of a shard, valid until another one is asked for.

        Raises:
            OSError: it cannot be opened.
        """
        descriptor = self._open.pop(shard.name, None)
        if descriptor is None:
            while len(self._open) >= OPEN_SHARDS:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(Path(self.directory) / shard.name, os.O_RDONLY | os.O_CLOEXEC)
        self._open[shard.name] = descriptor
        return descriptor

    def expect(self, names: Set[str]) -> None:
        """Say which shards are read from now on. An open file in a directory is in nobody's way."""


def close_all(files: dict[str, int]) -> None:
    """Close descriptors and forget them."""
    while files:
        os.close(files.popitem()[1])
