"""Cached tokens in the place of images: read through memory maps, and checked byte by byte as they are read.

A page is read from the disk when it is first touched, which happens in the loader's workers while a step computes.
"""

import mmap
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import DataError
from shards.format.features import FeatureIndex, Stream, Tokens
from shards.format.files import OPEN_SHARDS
from shards.read.collate import CachedTokens, SeenFeatures, Shown
from shards.read.eyes import Augment, Eyes


class DamagedFeaturesError(DataError):
    """A cache is not what it was; what it was made from still is."""


class FeatureCache:
    """The tokens of one stream for the images of a split; safe to hand to worker processes (files open on first use).

    Args:
        directory: with the index and tars of sizes that fit it.
    """

    def __init__(self, directory: Path, index: FeatureIndex) -> None:
        self.directory, self.index = directory, index
        self._map = lru_cache(OPEN_SHARDS)(self._opened)

    def __reduce__(self) -> tuple:
        return type(self), (self.directory, self.index)

    def read(self, shard: int, image: int) -> CachedTokens:
        """The tokens of an image, by the number of its shard and its own in there.

        Raises:
            DamagedFeaturesError: a byte of them is not as it was written, or the tar cannot be read.
        """
        layout = self.index.layout
        start = layout.offset(image)
        tokens = layout.decode(self._map(shard)[start : start + layout.member_bytes])
        if tokens is None:
            raise self._damaged(shard, f"image {image} is damaged")
        return _as_tensors(tokens)

    @property
    def blank(self) -> CachedTokens:
        """Tokens of 0."""
        layout = self.index.layout
        if layout.dtype == "fp16":
            return CachedTokens(torch.zeros(layout.tokens, layout.width, dtype=torch.float16), None)
        return CachedTokens(torch.zeros(layout.tokens, layout.width, dtype=torch.int8), torch.ones(layout.tokens, 1))

    def _opened(self, number: int) -> NDArray[np.uint8]:
        shard = self.index.shards[number]
        try:
            descriptor = os.open(self.directory / shard.name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # Behind the end of a shorter file a map has no bytes but a signal that ends the process.
                size = os.fstat(descriptor).st_size
                if size != shard.bytes:
                    raise self._damaged(number, f"has {size} bytes, not {shard.bytes}")
                # Copied only if somebody writes: torch takes no memory that cannot be written to.
                mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._damaged(number, f"cannot be read ({error.strerror})") from None
        return np.frombuffer(mapped, np.uint8)

    def _damaged(self, shard: int, what: str) -> DamagedFeaturesError:
        return DamagedFeaturesError(f"{self.directory / self.index.shards[shard].name}: {what}")


class CachedSight:
    """What the caches of a split hold of its images, by stream."""

    def __init__(self, caches: Mapping[Stream, FeatureCache], *, is_whole: bool) -> None:
        """
        Args:
            caches: at least one.
            is_whole: nobody looks at the images themselves any more.
        """
        assert caches, "without a cache, images are seen"
        self.caches, self.is_whole = dict(caches), is_whole

    def see(self, shard: int, images: Sequence[int], shown: Sequence[Shown | None]) -> list[Shown]:
        """Images of a shard by their numbers in it.

        Args:
            shown: each of them, for encoders whose tokens are not cached; None where the sight is whole.

        Raises:
            DamagedFeaturesError: a cache is not what it was.
        """
        found = [[self._of(stream, shard, image) for stream in ("vision", "second_stream")] for image in images]
        return [SeenFeatures(*tokens, other) for tokens, other in zip(found, shown, strict=True)]

    def beside(self, eyes: Eyes) -> "CachedEyes":
        """With the eyes of encoders whose tokens are not cached."""
        found = [self.caches[stream].blank if stream in self.caches else None for stream in ("vision", "second_stream")]
        return CachedEyes(eyes, SeenFeatures(*found, None if self.is_whole else eyes.blank))

    def _of(self, stream: Stream, shard: int, image: int) -> CachedTokens | None:
        return self.caches[stream].read(shard, image) if stream in self.caches else None


class CachedEyes(NamedTuple):
    """How images are seen beside a cache; what a collation is given."""

    eyes: Eyes
    blank: SeenFeatures

    def see(self, data: bytes, where: str, augment: Augment | None = None) -> Shown:
        """A packed image, for encoders whose tokens are not cached."""
        return self.eyes.see(data, where, augment)


def _as_tensors(tokens: Tokens) -> CachedTokens:
    scales = None if tokens.scales is None else torch.from_numpy(tokens.scales)
    return CachedTokens(torch.from_numpy(tokens.values), scales)
