"""One sample by its number: bytes are read by offset, no tar is ever scanned or extracted."""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from shards.errors import DataError
from shards.format.files import ShardFiles
from shards.format.index import Shard, SplitIndex
from shards.format.records import ImageSample, Item, Sample, cut_items, decode_item, decode_sample, text_hash

KEPT_BYTES = 32 << 20
"""Of annotations as JSON, per process: negatives read those of other images of the same block, and an image with
10,000 questions has 5 MB. Decoded they would take three times as much, and most of them are never looked at."""


_HASHED_SAMPLES = 4
"""A visit asks for the hashes of its own sample once for each of its questions."""
_TOGETHER_BYTES = 1 << 18
"""Of annotations in one read: less than the image beside them, and one round trip of a network file system, not 16."""
_CUT_BYTES = 100
"""Of a `msgspec.Raw` and its place in a tuple."""
_Decoded = TypeVar("_Decoded")


class _Annotations(NamedTuple):
    """The JSON of a sample, and where its items lie in it."""

    data: bytes
    items: tuple[msgspec.Raw, ...]

    @property
    def size(self) -> int:
        return len(self.data) + _CUT_BYTES * len(self.items)


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
        self._kept: OrderedDict[int, _Annotations] = OrderedDict()
        """Sample -> its annotations; those used last stand last."""
        self._kept_bytes = 0
        self.text_hashes = lru_cache(_HASHED_SAMPLES)(self._hash_texts)

    def __getstate__(self) -> dict:
        return {"directory": self.directory, "index": self.index, "kind": self._kind, "files": self.files}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def expect(self, shards: Collection[int]) -> None:
        """Say which shards are read from now on, by their numbers: only these stay open."""
        self.files.expect({self.index.shards[number].name for number in shards})

    def images(self, sample: int) -> list[bytes]:
        """The encoded images (JPEG, PNG or WebP) of the sample with this number."""
        shard, columns = self._shard_of(sample), self.index.columns
        return [
            self._read(shard, int(columns.image_offset[image]), int(columns.image_bytes[image]))
            for image in columns.images_of(sample)
        ]

    def sample(self, sample: int) -> Sample:
        """The annotations of the sample with this number."""
        return self._decoded(sample, lambda: decode_sample(self._json(sample), self._kind))

    def items(self, sample: int, positions: Sequence[int]) -> list[Item]:
        """The items of a sample at these positions: no other one is decoded, nor read where there are columns."""
        if self.index.columns.item_offset is None:
            kept = self._annotations(sample).items
            found = [kept[position] for position in positions]
        else:
            found = self._read_items(sample, positions)
        return self._decoded(sample, lambda: [decode_item(item, self._kind) for item in found])

    def text_hash(self, sample: int, position: int) -> int:
        """`shards.format.records.text_hash` of an item's own text."""
        columns = self.index.columns
        if columns.text_hash is not None:
            return int(columns.text_hash[int(columns.first_item[sample]) + position])
        (item,) = self.items(sample, [position])
        return text_hash(item.texts[0])

    def describe(self, sample: int) -> str:
        """Shard file and image id, for messages."""
        return f"{self.files.place(self._shard_of(sample))}: image {self.index.columns.id_of(sample)!r}"

    def _hash_texts(self, sample: int) -> frozenset[int]:
        """Those of all items of a sample."""
        columns = self.index.columns
        if columns.text_hash is not None:
            first, end = columns.first_item[sample : sample + 2].tolist()
            return frozenset(columns.text_hash[first:end].tolist())
        every = range(len(self._annotations(sample).items))
        return frozenset(text_hash(item.texts[0]) for item in self.items(sample, every))

    def _read_items(self, sample: int, positions: Sequence[int]) -> list[memoryview]:
        """Those at these positions as JSON: what lies between them is read along where it is little."""
        shard, columns = self._shard_of(sample), self.index.columns
        spans = [columns.item_span(sample, position) for position in positions]
        begin = int(columns.json_offset[sample])
        first, end = min(start for start, _ in spans), max(stop for _, stop in spans)
        if end - first <= _TOGETHER_BYTES:
            data = memoryview(self._read(shard, begin + first, end - first))
            return [data[start - first : stop - first] for start, stop in spans]
        return [memoryview(self._read(shard, begin + start, stop - start)) for start, stop in spans]

    def _annotations(self, sample: int) -> _Annotations:
        found = self._kept.pop(sample, None)
        if found is None:
            data = self._json(sample)
            found = _Annotations(data, self._decoded(sample, lambda: cut_items(data, self._kind)))
            self._kept_bytes += found.size
        self._kept[sample] = found
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.size
        return found

    def _json(self, sample: int) -> bytes:
        if sample in self._kept:
            return self._kept[sample].data
        columns = self.index.columns
        return self._read(self._shard_of(sample), int(columns.json_offset[sample]), int(columns.json_bytes[sample]))

    def _shard_of(self, sample: int) -> Shard:
        return self.index.shards[self.index.locate(sample)[0]]

    def _decoded(self, sample: int, decode: Callable[[], _Decoded]) -> _Decoded:
        try:
            return decode()
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
