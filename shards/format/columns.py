"""`columns.bin`: what is looked up of every sample and question, mapped into memory and never read as a whole.

It says nothing that `index.json` and the shards do not say, so shards without it are read as before: then the columns
of the samples are made from the index, in memory, and those of the questions are not there.

    16 bytes `duoflow-columns\\n`, 8 the size of the header, 32 its sha256, the header (JSON, filled up with spaces to
    whole 64 bytes), then each column where the header says, little-endian.
"""

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError

COLUMNS_NAME = "columns.bin"
VERSION = 2
_MAGIC = b"duoflow-columns\n"
_ALIGNED = 64
_LENGTH = 8
_DIGEST = 32
_FIRST = len(_MAGIC) + _LENGTH + _DIGEST
_CHUNK = 1 << 22

Array = NDArray[np.generic]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a column lies."""

    kind: str
    """numpy's, such as `<i8`."""
    offset: int
    length: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in front of the columns."""

    version: int = VERSION
    index_digest: str
    """`digest` of the index that they belong to."""
    index_sha256: str
    """That of its whole file."""
    index: msgspec.Raw
    """The index without what the columns hold."""
    sha256: str
    """Of everything behind the header."""
    columns: dict[str, Place]


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """What is known of each of N samples, with M images and Q items in S shards."""

    first_sample: Array
    """(S + 1,) int64: number of the first sample of each shard, and one past the last"""
    json_offset: Array
    """(N,) int64, of the JSON member's data in its tar"""
    json_bytes: Array
    """(N,) uint32"""
    num_items: Array
    """(N,) int32"""
    first_item: Array
    """(N + 1,) int64: number over the split of the first item of each sample, and one past the last"""
    first_image: Array | None
    """(N + 1,) int64 of its images; None where every sample has one"""
    image_offset: Array
    """(M,) int64, of the image's data in its tar"""
    image_bytes: Array
    """(M,) uint32"""
    id_end: Array
    """(N + 1,) int64: where each id ends in `ids`; the first one is 0"""
    ids: Array
    """uint8: the sample ids, UTF-8"""
    item_offset: Array | None = None
    """(Q,) uint32: where each item begins in the JSON of its sample; None where the shards have no columns"""
    text_hash: Array | None = None
    """(Q,) uint64 of the items' own texts, `shards.format.records.text_hash`; None with `item_offset`"""
    path: Path | None = None
    """Where they are mapped from."""

    def __reduce__(self) -> tuple:
        """Whoever gets them maps the file: nothing of them is sent to another process."""
        if self.path is not None:
            return _mapped, (self.path,)
        return _made, ({field.name: getattr(self, field.name) for field in fields(self)},)

    def images_of(self, sample: int) -> range:
        """The numbers of the images of a sample."""
        if self.first_image is None:
            return range(sample, sample + 1)
        return range(int(self.first_image[sample]), int(self.first_image[sample + 1]))

    def id_of(self, sample: int) -> str:
        """The id of a sample."""
        return self.ids[int(self.id_end[sample]) : int(self.id_end[sample + 1])].tobytes().decode()

    def item_span(self, sample: int, position: int) -> tuple[int, int]:
        """Where an item begins and ends in the JSON of its sample: a comma, or `]}`, stands behind it."""
        item, end = int(self.first_item[sample]) + position, int(self.first_item[sample + 1])
        start = int(self.item_offset[item])
        if item + 1 < end:
            return start, int(self.item_offset[item + 1]) - 1
        return start, int(self.json_bytes[sample]) - 2


SAMPLE_COLUMNS = tuple(
    field.name for field in fields(Columns) if field.name not in ("item_offset", "text_hash", "path")
)
"""The names of those that an index lists."""


class SampleLists(NamedTuple):
    """A shard as its index lists it."""

    ids: Sequence[str]
    image_offsets: Sequence[int]
    image_bytes: Sequence[int]
    json_offsets: Sequence[int]
    json_bytes: Sequence[int]
    num_items: Sequence[int]
    images_per_sample: Sequence[int] | None


class ItemColumns(NamedTuple):
    """What is known of the items of a shard."""

    offsets: bytes
    hashes: bytes


def columns_of(shards: Sequence[SampleLists]) -> Columns:
    """Those of the samples, from the lists of an index."""

    def joined(kind: str, lists: Iterable[Sequence[int]]) -> Array:
        return np.concatenate([np.zeros(0, kind), *(np.asarray(some, kind) for some in lists)])

    num_items = joined("<i4", (shard.num_items for shard in shards))
    ids = [name.encode() for shard in shards for name in shard.ids]
    several = any(shard.images_per_sample is not None for shard in shards)
    per_sample = (shard.images_per_sample or [1] * len(shard.ids) for shard in shards)
    return Columns(
        first_sample=_ends([len(shard.ids) for shard in shards]),
        json_offset=joined("<i8", (shard.json_offsets for shard in shards)),
        json_bytes=joined("<u4", (shard.json_bytes for shard in shards)),
        num_items=num_items,
        first_item=_ends(num_items),
        first_image=_ends(joined("<i4", per_sample)) if several else None,
        image_offset=joined("<i8", (shard.image_offsets for shard in shards)),
        image_bytes=joined("<u4", (shard.image_bytes for shard in shards)),
        id_end=_ends([len(name) for name in ids]),
        ids=np.frombuffer(b"".join(ids), "u1"),
    )


def write_columns(
    path: Path,
    columns: Columns,
    items: Iterable[ItemColumns],
    *,
    index: bytes,
    digest: str,
    file_sha256: str,
) -> None:
    """Write a file of columns; in memory is a shard at a time.

    Args:
        columns: of the samples.
        items: shard by shard.
        index: the light index, as JSON.
        digest: that of the whole index; `file_sha256` that of its file.

    Raises:
        OSError: the disk is full or fails.
    """
    given = {name: getattr(columns, name) for name in SAMPLE_COLUMNS}
    arrays = {name: array for name, array in given.items() if array is not None}
    num_items = int(columns.first_item[-1])
    kinds = {name: (array.dtype.str, len(array)) for name, array in arrays.items()}
    kinds |= {"item_offset": ("<u4", num_items), "text_hash": ("<u8", num_items)}
    places, offset = {}, 0
    for name, (kind, length) in kinds.items():
        places[name] = Place(kind=kind, offset=offset, length=length)
        offset = _aligned(offset + np.dtype(kind).itemsize * length)
    header = Header(
        index_digest=digest,
        index_sha256=file_sha256,
        index=msgspec.Raw(index),
        sha256="0" * 64,
        columns=places,
    )
    begin = _FIRST + len(_sealed(header)[_FIRST:])
    with path.open("wb+") as file:
        file.truncate(begin + offset)
        for name, array in arrays.items():
            file.seek(begin + places[name].offset)
            file.write(np.ascontiguousarray(array).data)
        done = 0
        for shard in items:
            for name, data, width in (("item_offset", shard.offsets, 4), ("text_hash", shard.hashes, 8)):
                file.seek(begin + places[name].offset + width * done)
                file.write(data)
            done += len(shard.offsets) // 4
        assert done == num_items, f"{path}: {done} items for {num_items}"
        file.flush()
        sha256 = _digest_from(file, begin)
        file.seek(0)
        file.write(_sealed(msgspec.structs.replace(header, sha256=sha256)))
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> tuple[Header, int]:
    """The header of a file, and where its columns begin.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, of another version, or shorter than it says.
    """
    remedy = "make it again with `duoflow shards upgrade`"
    try:
        with path.open("rb") as file:
            first = file.read(_FIRST)
            size = int.from_bytes(first[len(_MAGIC) : len(_MAGIC) + _LENGTH], "little")
            whole = os.fstat(file.fileno()).st_size
            text = file.read(size) if size <= whole else b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if first[: len(_MAGIC)] != _MAGIC or hashlib.sha256(text).digest() != first[len(_MAGIC) + _LENGTH :]:
        raise DataError(f"{path}: no columns of shards, or damaged; {remedy}")
    header = msgspec.json.decode(text, type=Header)
    if header.version != VERSION:
        raise DataError(f"{path}: version {header.version}; expected {VERSION}: {remedy}")
    begin = _FIRST + size
    end = max((_aligned(p.offset + np.dtype(p.kind).itemsize * p.length) for p in header.columns.values()), default=0)
    if whole != begin + end:
        raise DataError(f"{path}: {whole} bytes; expected {begin + end}: {remedy}")
    return header, begin


def map_columns(path: Path, header: Header, begin: int) -> Columns:
    """The columns of a file whose header was read."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {
        name: np.frombuffer(mapped, place.kind, place.length, begin + place.offset)
        for name, place in header.columns.items()
    }
    return Columns(path=path, **{"first_image": None, **arrays})


def is_whole(path: Path, header: Header, begin: int) -> bool:
    """Whether every byte behind the header is the one that was written."""
    with path.open("rb") as file:
        return _digest_from(file, begin) == header.sha256


def item_columns(samples: Iterable[tuple[bytes, Sequence[bytes | memoryview], Sequence[int]]]) -> ItemColumns:
    """Those of the items of a shard.

    Args:
        samples: of each its JSON, its items cut out of it, and the hashes of their texts.

    Raises:
        ValueError: items do not stand one behind the other up to the end of a sample, as they are written.
    """
    offsets, hashes = [], []
    for data, items, of_items in samples:
        starts = list(_starts(data, items))
        offsets.append(np.asarray(starts[::-1], "<u4").tobytes())
        hashes.append(np.asarray(of_items, "<u8").tobytes())
    return ItemColumns(b"".join(offsets), b"".join(hashes))


def _starts(data: bytes, items: Sequence[bytes | memoryview]) -> Iterator[int]:
    """Where items begin, the last one first."""
    end = len(data) - 2
    for item in reversed(items):
        start = end - len(item)
        if start < 0 or data[start:end] != item:
            raise ValueError("its items do not end it, one behind the other")
        yield start
        end = start - 1


def _ends(lengths: Sequence[int] | Array) -> Array:
    return np.concatenate([np.zeros(1, "<i8"), np.cumsum(lengths, dtype="<i8")]).astype("<i8")


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNED) * _ALIGNED


def _sealed(header: Header) -> bytes:
    text = msgspec.json.encode(header)
    text += b" " * (_aligned(_FIRST + len(text)) - _FIRST - len(text))
    return _MAGIC + len(text).to_bytes(_LENGTH, "little") + hashlib.sha256(text).digest() + text


def _digest_from(file: BinaryIO, begin: int) -> str:
    digest = hashlib.sha256()
    file.seek(begin)
    while data := file.read(_CHUNK):
        digest.update(data)
    return digest.hexdigest()


def _mapped(path: Path) -> Columns:
    return map_columns(path, *read_header(path))


def _made(arrays: dict[str, Array | None]) -> Columns:
    return Columns(**arrays)
