"""One sample by its number: bytes are read by offset, no tar is ever scanned or extracted."""

import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import msgspec

from shards.errors import DataError
from shards.format.files import ShardFiles
from shards.format.index import Shard, SplitIndex
from shards.format.records import ImageSample, Sample, decode_sample

CACHED_SAMPLES = 1024
"""Decoded annotations kept per process: negatives read those of other images of the same block."""


class ShardReader:
    """Reads images and annotations of a split; safe to hand to worker processes (files open on first use).

    One thread at a time: to open a shard may close another one.

    Raises (all methods):
        DataError: a shard is missing, cannot be fetched or read, is shorter than the index says, or holds no such
            sample.
    """

    def __init__(
        self,
        directory: str | Path,
        index: SplitIndex,
        kind: type[Sample] = ImageSample,
        files: ShardFiles | None = None,
    ) -> None:
        """The reader of a place whose samples are of a kind.

        Args:
            files: what opens its shards; without them they lie in a directory.
        """
        self.directory, self.index, self._kind = directory, index, kind
        self.files = ShardFiles(directory) if files is None else files
        self._cached_sample = lru_cache(CACHED_SAMPLES)(self._read_sample)

    def __getstate__(self) -> dict:
        return {"directory": self.directory, "index": self.index, "kind": self._kind, "files": self.files}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def expect(self, shards: Collection[int]) -> None:
        """Say which shards are read from now on, by their numbers: only these stay open."""
        self.files.expect({self.index.shards[number].name for number in shards})

    def images(self, sample: int) -> list[bytes]:
        """The encoded images (JPEG, PNG or WebP) of the sample with this number."""
        number, position = self.index.locate(sample)
        shard = self.index.shards[number]
        return [
            self._read(shard, shard.image_offsets[image], shard.image_bytes[image])
            for image in shard.images_of(position)
        ]

    def sample(self, sample: int) -> Sample:
        """The annotations of the sample with this number."""
        return self._cached_sample(sample)

    def describe(self, sample: int) -> str:
        """Shard file and image id, for messages."""
        number, position = self.index.locate(sample)
        shard = self.index.shards[number]
        return f"{self.files.place(shard)}: image {shard.image_ids[position]!r}"

    def _read_sample(self, sample: int) -> Sample:
        number, position = self.index.locate(sample)
        shard = self.index.shards[number]
        data = self._read(shard, shard.json_offsets[position], shard.json_bytes[position])
        try:
            return decode_sample(data, self._kind)
        except msgspec.DecodeError as error:
            raise DataError(f"{self.describe(sample)}: damaged annotations ({error}); {self._remedy}") from None

    def _read(self, shard: Shard, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self.files.descriptor(shard), size, offset)
        except FileNotFoundError as error:
            raise DataError(f"{self.files.place(shard)}: {error.strerror}; {self._remedy}") from None
        except OSError as error:
            raise DataError(
                f"{self.files.place(shard)}: cannot be read at byte {offset}: {error.strerror}; see to the disk, "
                "the mount or the rights, and run the same command again"
            ) from None
        if len(data) != size:
            raise DataError(
                f"{self.files.place(shard)}: ends at byte {offset + len(data)}, expected {shard.bytes}; {self._remedy}"
            )
        return data

    @property
    def _remedy(self) -> str:
        return f"list every fault with `duoflow shards verify {self.directory}` and build the shards again"
