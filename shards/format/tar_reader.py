"""One sample by its number: bytes are read by offset, no tar is ever scanned or extracted."""

import os
import weakref
from functools import lru_cache
from pathlib import Path

import msgspec

from shards.errors import DataError
from shards.format.index import Shard, SplitIndex
from shards.format.records import ImageSample, Sample, decode_sample

CACHED_SAMPLES = 1024
"""Decoded annotations kept per process: negatives read those of other images of the same block."""

OPEN_SHARDS = 256
"""Shards kept open per reader. An epoch goes through up to lanes x shuffle_shards of them at a time (64 x 8), and
opening one again costs little; but a process that reads a training and a validation split has 1,024 descriptors, where
nobody raised that limit, for everything."""


class ShardReader:
    """Reads images and annotations of a split; safe to hand to worker processes (files open on first use).

    One thread at a time: to open a shard may close another one.

    Raises (all methods):
        DataError: a shard is missing, cannot be read, is shorter than the index says, or holds no such sample.
    """

    def __init__(self, directory: str | Path, index: SplitIndex, kind: type[Sample] = ImageSample) -> None:
        """The reader of a directory whose samples are of a kind."""
        self.directory, self.index, self._kind = Path(directory), index, kind
        self._open_files: dict[str, int] = {}
        """Shard -> descriptor; the one used last stands last."""
        weakref.finalize(self, _close_all, self._open_files)
        self._cached_sample = lru_cache(CACHED_SAMPLES)(self._read_sample)

    def __getstate__(self) -> dict:
        return {"directory": self.directory, "index": self.index, "kind": self._kind}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

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
        return f"{self.directory / shard.name}: image {shard.image_ids[position]!r}"

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
            data = os.pread(self._open(shard), size, offset)
        except FileNotFoundError as error:
            raise DataError(f"{self.directory / shard.name}: {error.strerror}; {self._remedy}") from None
        except OSError as error:
            raise DataError(
                f"{self.directory / shard.name}: cannot be read at byte {offset}: {error.strerror}; see to the disk, "
                "the mount or the rights, and run the same command again"
            ) from None
        if len(data) != size:
            raise DataError(
                f"{self.directory / shard.name}: ends at byte {offset + len(data)}, expected {shard.bytes}; "
                f"{self._remedy}"
            )
        return data

    def _open(self, shard: Shard) -> int:
        descriptor = self._open_files.pop(shard.name, None)
        if descriptor is None:
            while len(self._open_files) >= OPEN_SHARDS:
                os.close(self._open_files.pop(next(iter(self._open_files))))
            descriptor = os.open(self.directory / shard.name, os.O_RDONLY | os.O_CLOEXEC)
        self._open_files[shard.name] = descriptor
        return descriptor

    @property
    def _remedy(self) -> str:
        return f"list every fault with `duoflow shards verify {self.directory}` and build the shards again"


def _close_all(open_files: dict[str, int]) -> None:
    while open_files:
        os.close(open_files.popitem()[1])
