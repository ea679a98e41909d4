"""The columns beside an index: made of finished shards, by a build and by `duoflow shards upgrade` alike."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from shards.annotations import READERS
from shards.atomic import sync_directory
from shards.build.output_directory import claimed
from shards.build.packing import map_in_order
from shards.errors import DataError
from shards.format.columns import COLUMNS_NAME, ItemColumns, item_columns, read_header, write_columns
from shards.format.index import Shard, SplitIndex, encode_index, read_index
from shards.format.records import cut_items, decode_item, text_hash
from shards.progress import Progress


class Part(NamedTuple):
    """A shard whose items are to be looked at."""

    path: Path
    shard: Shard
    format: str


def make_columns(
    path: Path, directory: Path, index: SplitIndex, *, workers: int = 0, show_progress: bool = False
) -> None:
    """Write the columns of an index.

    Args:
        path: of the file.
        directory: where the shards are.

    Raises:
        DataError: the annotations of a shard cannot be read, or are not what a build writes.
        OSError: the file cannot be written.
    """
    text = encode_index(index)
    light = msgspec.structs.replace(index.without_lists(), digest=_digest_of(text))
    parts = [Part(directory / shard.name, shard, index.reader) for shard in index.shards]
    with Progress("making columns", len(parts), "shards", show=show_progress) as progress:

        def items() -> Iterator[ItemColumns]:
            for made in map_in_order(items_of, parts, min(workers, len(parts))):
                yield made
                progress.advance()

        write_columns(
            path,
            index.columns,
            items(),
            index=msgspec.json.encode(light, order="deterministic"),
            digest=light.digest,
            file_sha256=hashlib.sha256(text).hexdigest(),
        )


def upgrade(directory: Path, *, workers: int = 0, show_progress: bool = False) -> bool:
    """Put columns beside the index of shards that have none, or those of another index; the rest stays as it is.

    Returns:
        Whether they were made: False if they were there.

    Raises:
        DataError: there are no finished shards, or they cannot be read.
    """
    index = read_index(directory)
    if has_columns(directory, index):
        return False
    aside, path = directory / f".{COLUMNS_NAME}.partial", directory / COLUMNS_NAME
    try:
        with claimed(directory):
            try:
                make_columns(aside, directory, index, workers=workers, show_progress=show_progress)
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
            sync_directory(directory)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; the shards are as they were") from None
    return True


def has_columns(directory: Path, index: SplitIndex) -> bool:
    """Whether the columns of this index lie beside it."""
    try:
        return read_header(directory / COLUMNS_NAME)[0].index_digest == index.digest
    except (FileNotFoundError, DataError):
        return False


def items_of(part: Part) -> ItemColumns:
    """What the columns say of the items of a shard.

    Raises:
        DataError: they cannot be read.
    """
    shard, kind = part.shard, READERS[part.format].sample
    number = 0

    def samples(descriptor: int) -> Iterator[tuple]:
        nonlocal number
        for number, (offset, size) in enumerate(zip(shard.json_offsets, shard.json_bytes, strict=True)):
            data = os.pread(descriptor, size, offset)
            items = cut_items(data, kind)
            if len(items) != shard.num_questions[number]:
                raise ValueError(f"{len(items)} questions; the index says {shard.num_questions[number]}")
            hashes = [text_hash(decode_item(item, kind).texts[0]) for item in items]
            yield data, [bytes(item) for item in items], hashes

    try:
        descriptor = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return item_columns(samples(descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{part.path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(
            f"{part.path}: image {shard.image_ids[number]!r}: {error}; list every fault with `duoflow shards verify`"
        ) from None


def _digest_of(text: bytes) -> str:
    return msgspec.json.decode(text, type=_Sealed).digest


class _Sealed(msgspec.Struct):
    digest: str
