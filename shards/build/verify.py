"""A directory of shards re-read against its index: every fault, not the first."""

import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from shards.annotations import READERS, reader_of
from shards.build.columns import Part as ShardPart
from shards.build.columns import items_of
from shards.build.packing import map_in_order
from shards.build.tally import summarise, tally
from shards.build.tar_writer import BLOCK, image_extensions, padded, sample_key, shard_name
from shards.config import CacheConfig
from shards.errors import DataError
from shards.format.columns import (
    COLUMNS_NAME,
    SAMPLE_COLUMNS,
    ItemColumns,
    is_whole,
    map_columns,
    read_header,
)
from shards.format.images import UnreadableImage, decode_image, resized_size
from shards.format.index import INDEX_NAME, RegionShape, Shard, SplitIndex, decode_index, is_intact, read_index_bytes
from shards.format.records import Kind, Picture, Sample, decode_sample
from shards.format.regions import EXTENSION, Regions, decode_regions
from shards.progress import Progress
from shards.remote.address import is_url, joined
from shards.remote.cache import cache_directory
from shards.remote.files import open_files


class Report(NamedTuple):
    """What a verification found and how much it looked at."""

    faults: list[str]
    shards: int
    images: int
    questions: int
    bytes: int


class _Part(NamedTuple):
    """A shard to look at."""

    directory: str | Path
    shard: Shard
    first_sample: int
    resize: int | None
    format: str
    regions: RegionShape | None
    cache: CacheConfig | None
    """Where a shard behind a URL is copied to."""


class _Seen(NamedTuple):
    """What was found in a shard."""

    faults: list[str]
    kinds: Counter[Kind]
    id_hashes: bytes
    """8 bytes per question instead of its id: all ids of a large split would not fit into memory."""
    items: bytes
    """sha256 of what the columns should say of its items; empty where that cannot be told."""
    bytes: int


def verify_shards(directory: str | Path, *, workers: int = 0, show_progress: bool = False) -> Report:
    """Read every byte of a directory of shards, or of their URL, and compare it with the index.

    Args:
        directory: the shards. Of a URL every shard is fetched, whatever the cache of training holds; tars that the
            index does not know are looked for in a directory alone.
        workers: processes, each with one shard at a time.
        show_progress: whether to tell how far it is, on stderr.

    Raises:
        DataError: there is no such directory, or no index in it.
    """
    data = read_index_bytes(directory)
    path = joined(directory, INDEX_NAME)
    try:
        index = decode_index(data, path)
        reader_of(index, directory)
    except DataError as error:
        return Report([str(error)], 0, 0, 0, 0)
    faults = [] if is_intact(data) else [f"{INDEX_NAME}: its digest does not fit its content"]
    crooked = _table_faults(index)
    if crooked:
        return Report(faults + crooked, 0, 0, 0, 0)
    faults += _order_faults(index) + _stray_files(directory, index)
    kinds: Counter[Kind] = Counter()
    hashes, seen_items = io.BytesIO(), []
    size = 0
    with (
        _copies_of(directory, index, workers) as cache,
        Progress("verifying", len(index.shards), "shards", show=show_progress) as progress,
    ):
        parts = list(_parts(directory, index, cache))
        for seen in map_in_order(_look_at_shard, parts, min(workers, len(index.shards))):
            faults += seen.faults
            kinds.update(seen.kinds)
            hashes.write(seen.id_hashes)
            seen_items.append(seen.items)
            size += seen.bytes
            progress.advance()
        faults += (
            _column_faults(directory, index, seen_items)
            + _duplicate_ids(parts, np.frombuffer(hashes.getvalue(), np.uint64))
            + _sum_faults(index, kinds)
        )
    return Report(faults, len(index.shards), index.num_images, kinds.total(), size)


@contextmanager
def _copies_of(directory: str | Path, index: SplitIndex, workers: int) -> Iterator[CacheConfig | None]:
    """A cache of its own for the shards of a URL, as large as the workers need and gone afterwards."""
    if not is_url(directory):
        yield None
        return
    cache = cache_directory(None)
    cache.mkdir(parents=True, exist_ok=True)
    largest = max((shard.bytes for shard in index.shards), default=1)
    with TemporaryDirectory(prefix="verify.", dir=cache) as aside:
        yield CacheConfig(directory=aside, bytes=largest * (max(workers, 1) + 1))


@contextmanager
def _opened(part: _Part) -> Iterator[int]:
    """A descriptor of a shard.

    Raises:
        OSError, DataError: it cannot be opened, or fetched as the index says.
    """
    files = open_files(part.directory, [part.shard], part.cache)
    yield files.descriptor(part.shard)


def _parts(directory: str | Path, index: SplitIndex, cache: CacheConfig | None) -> Iterator[_Part]:
    resize = index.options.get("resize")
    for shard, first in zip(index.shards, index.first_image[:-1], strict=True):
        shape = None if index.regions is UNSET else index.regions
        side = resize if isinstance(resize, int) else None
        yield _Part(directory, shard, int(first), side, index.reader, shape, cache)


def _table_faults(index: SplitIndex) -> list[str]:
    """Lists that do not fit together: nothing can be looked up with them."""
    faults = []
    for shard in index.shards:
        per_sample = ["json_offsets", "json_bytes", "num_questions"]
        if shard.images_per_sample is not UNSET:
            per_sample.append("images_per_sample")
        per_image = ["image_formats", "image_offsets", "image_bytes", *(["image_refs"] if shard.image_refs else [])]
        num_samples = len(shard.image_ids)
        num_images = num_samples if shard.images_per_sample is UNSET else sum(shard.images_per_sample)
        for names, expected in ((per_image, num_images), (per_sample, num_samples)):
            for name in names:
                length = len(getattr(shard, name))
                if length != expected:
                    faults.append(f"{INDEX_NAME}: {shard.name}: {length} {name} for {expected} images")
    return faults


def _order_faults(index: SplitIndex) -> list[str]:
    faults = []
    for number, shard in enumerate(index.shards):
        if shard.name != shard_name(number):
            faults.append(f"{INDEX_NAME}: shard {number} is called {shard.name!r}; expected {shard_name(number)!r}")
    ids = [image_id for shard in index.shards for image_id in shard.image_ids]
    for one, other in pairwise(ids):
        if one >= other:
            what = "occurs twice" if one == other else f"stands behind {one!r}"
            faults.append(f"{INDEX_NAME}: image id {other!r} {what}; expected each id once, in order")
    return faults


def _stray_files(directory: str | Path, index: SplitIndex) -> list[str]:
    if is_url(directory):  # most protocols cannot list what there is
        return []
    names = {shard.name for shard in index.shards}
    strays = sorted(path.name for path in Path(directory).glob("*.tar") if path.name not in names)
    return [f"{name}: not in the index; a pipeline over *.tar would read it" for name in strays]


def _look_at_shard(part: _Part) -> _Seen:
    shard = part.shard
    kinds: Counter[Kind] = Counter()
    hashes = io.BytesIO()
    faults: list[str] = []
    size = 0
    try:
        with _opened(part) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
            size = os.fstat(descriptor).st_size
            if size != shard.bytes:
                faults.append(f"{shard.name}: {size} bytes; the index says {shard.bytes}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != shard.sha256:
                faults.append(f"{shard.name}: sha256 {digest}; the index says {shard.sha256}")
            for sample in _samples(descriptor, part, faults):
                kinds.update(tally(sample.items))
                hashes.write(b"".join(_hash_id(item.item_id) for item in sample.items))
    except FileNotFoundError:
        faults.append(f"{shard.name}: missing")
    except OSError as error:
        faults.append(f"{shard.name}: cannot be read: {error.strerror}")
    except DataError as error:
        faults.append(str(error))
    return _Seen(faults, kinds, hashes.getvalue(), _items_digest(part), size)


def _items_digest(part: _Part) -> bytes:
    if is_url(part.directory):
        return b""
    try:
        return _digest_of(items_of(ShardPart(Path(part.directory) / part.shard.name, part.shard, part.format)))
    except DataError:
        return b""  # that the shard is damaged is said already


def _digest_of(items: ItemColumns) -> bytes:
    return hashlib.sha256(items.offsets + items.hashes).digest()


def _column_faults(directory: str | Path, index: SplitIndex, seen: Sequence[bytes]) -> list[str]:
    """The columns against their own digest, the index and the shards; there need not be any."""
    if is_url(directory):
        return []
    path = Path(directory) / COLUMNS_NAME
    try:
        header, begin = read_header(path)
    except FileNotFoundError:
        return []
    except DataError as error:
        return [str(error)]
    remedy = "make it again with `duoflow shards upgrade`"
    if header.index_digest != index.digest:
        return [f"{COLUMNS_NAME}: belongs to another index; {remedy}"]
    if not is_whole(path, header, begin):
        return [f"{COLUMNS_NAME}: its digest does not fit its content; {remedy}"]
    found, expected = map_columns(path, header, begin), index.columns
    faults = [
        f"{COLUMNS_NAME}: {name} is not that of the index; {remedy}"
        for name in SAMPLE_COLUMNS
        if not np.array_equal(getattr(found, name), getattr(expected, name))
    ]
    items = expected.first_item[expected.first_sample].tolist()
    for shard, digest, (first, end) in zip(index.shards, seen, pairwise(items), strict=True):
        theirs = ItemColumns(found.item_offset[first:end].tobytes(), found.text_hash[first:end].tobytes())
        if digest and _digest_of(theirs) != digest:
            faults.append(f"{COLUMNS_NAME}: what it says of the questions of {shard.name} is wrong; {remedy}")
    return faults


def _samples(descriptor: int, part: _Part, faults: list[str]) -> Iterator[Sample]:
    """The samples of a shard that can be read; what is wrong goes to `faults`."""
    shard, end = part.shard, 0
    for position in range(len(shard.image_ids)):
        key = sample_key(part.first_sample + position)
        images = _image_members(part, position)
        members = [(image.name, image.offset, image.size) for image in images]
        members.append((f"{key}.json", shard.json_offsets[position], shard.json_bytes[position]))
        for name, offset, size in members:
            if offset != end + BLOCK:
                faults.append(f"{shard.name}: {name} at {offset}; expected {end + BLOCK}, behind the member before it")
            end = offset + padded(size)
            faults += [f"{shard.name}: {name}: {what}" for what in _header_faults(descriptor, name, offset, size)]
        sample = _json_member(descriptor, part, position, len(images), faults)
        pictures = sample.pictures if sample is not None else [None] * len(images)
        for image, picture in zip(images, pictures, strict=True):
            _check_image(descriptor, part, image, picture, faults)
        if sample is not None:
            yield sample


class _ImageMember(NamedTuple):
    """An image of a sample as the index has it."""

    name: str
    extension: str
    offset: int
    size: int


def _image_members(part: _Part, position: int) -> list[_ImageMember]:
    shard, images = part.shard, part.shard.images_of(position)
    key = sample_key(part.first_sample + position)
    extensions = [shard.image_formats[image] for image in images]
    return [
        _ImageMember(f"{key}.{ending}", extension, shard.image_offsets[image], shard.image_bytes[image])
        for image, extension, ending in zip(images, extensions, image_extensions(extensions), strict=True)
    ]


def _header_faults(descriptor: int, name: str, offset: int, size: int) -> list[str]:
    try:
        header = tarfile.TarInfo.frombuf(_read(descriptor, offset - BLOCK, BLOCK), "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        return [f"no tar header in front of byte {offset}: {error}"]
    found = (header.name, header.size, header.isreg())
    return (
        []
        if found == (name, size, True)
        else [f"the tar header says {header.name!r}, {header.size} bytes; expected {size}"]
    )


def _json_member(descriptor: int, part: _Part, position: int, num_images: int, faults: list[str]) -> Sample | None:
    shard = part.shard
    where = f"{shard.name}: {sample_key(part.first_sample + position)}.json"
    try:
        data = _read(descriptor, shard.json_offsets[position], shard.json_bytes[position])
        sample = decode_sample(data, READERS[part.format].sample)
    except (msgspec.DecodeError, ValueError) as error:
        faults.append(f"{where}: not a sample: {error}")
        return None
    if sample.sample_id != shard.image_ids[position]:
        faults.append(f"{where}: image id {sample.sample_id!r}; the index says {shard.image_ids[position]!r}")
    if len(sample.pictures) != num_images:
        faults.append(f"{where}: {len(sample.pictures)} images; the index says {num_images}")
        return None
    if len(sample.items) != shard.num_questions[position]:
        faults.append(f"{where}: {len(sample.items)} questions; the index says {shard.num_questions[position]}")
    ids = [item.item_id for item in sample.items]
    if ids != sorted(ids):
        faults.append(f"{where}: questions are not in the order of their ids")
    return sample


def _check_image(descriptor: int, part: _Part, image: _ImageMember, picture: Picture | None, faults: list[str]) -> None:
    where = f"{part.shard.name}: {image.name}"
    try:
        data = _read(descriptor, image.offset, image.size)
        if part.regions is not None:
            faults += _region_faults(decode_regions(data, where), part.regions, image, picture, where)
            return
        decoded = decode_image(data, where)
    except UnreadableImage as error:
        faults.append(str(error))
        return
    except ValueError as error:
        faults.append(f"{where}: {error}")
        return
    if decoded.extension != image.extension:
        faults.append(f"{where}: the image is a {decoded.extension}; the index says {image.extension}")
    if picture is not None:
        size = (picture.width, picture.height)
        expected = resized_size(*size, part.resize) if part.resize and min(size) > 0 else size
        if decoded.size != expected:
            faults.append(
                f"{where}: {decoded.size[0]} x {decoded.size[1]} pixels; expected {expected[0]} x {expected[1]}"
            )


def _region_faults(
    regions: Regions, shape: RegionShape, image: _ImageMember, picture: Picture | None, where: str
) -> Iterator[str]:
    if image.extension != EXTENSION:
        yield f"{where}: regions; the index says {image.extension}"
    if regions.shape != shape:
        yield f"{where}: {regions.shape}; the index says {shape}"
    width, height = regions.size.tolist()
    if picture is not None and (width, height) != (picture.width, picture.height):
        yield f"{where}: of {width} x {height} pixels; expected {picture.width} x {picture.height}"


def _read(descriptor: int, offset: int, size: int) -> bytes:
    if offset < 0 or size < 0:
        raise ValueError(f"{size} bytes at {offset}")
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise ValueError(f"the file ends at byte {offset + len(data)} of {offset + size}")
    return data


def _hash_id(question_id: str) -> bytes:
    return hashlib.blake2b(question_id.encode(), digest_size=8).digest()


def _duplicate_ids(parts: Sequence[_Part], hashes: NDArray[np.uint64]) -> list[str]:
    values, counts = np.unique(hashes, return_counts=True)
    suspects = {value.tobytes() for value in values[counts > 1]}
    if not suspects:
        return []
    places: dict[str, list[str]] = {}
    for part in parts:
        with _opened(part) as descriptor:
            for sample in _samples(descriptor, part, []):
                for item in sample.items:
                    if _hash_id(item.item_id) in suspects:
                        places.setdefault(item.item_id, []).append(f"image {sample.sample_id!r}")
    return [
        f"question id {question_id!r} occurs {len(images)} times: {', '.join(images)}"
        for question_id, images in places.items()
        if len(images) > 1
    ]


def _sum_faults(index: SplitIndex, kinds: Counter[Kind]) -> list[str]:
    """The tables of the index against what the samples say."""
    summary = summarise(kinds)
    faults = []
    counted = {"images": index.num_images, "questions": summary.questions, "answered": summary.answered}
    for name, number in counted.items():
        if index.counts.get(name) != number:
            faults.append(f"{INDEX_NAME}: counts.{name} is {index.counts.get(name)}; the shards hold {number}")
    tables = (
        ("answers", index.answers, summary.answers),
        ("groups", index.groups, summary.groups),
        ("types", index.types, summary.types),
    )
    faults += [f"{INDEX_NAME}: {name} are not those of the shards" for name, says, found in tables if says != found]
    return faults
