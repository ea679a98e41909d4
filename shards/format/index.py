"""`index.json`: the only description of a split of shards, written last, read before anything else."""

import hashlib
import logging
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError
from shards.format.columns import COLUMNS_NAME, Columns, SampleLists, columns_of, map_columns, read_header
from shards.format.sealed import NO_DIGEST, is_intact, seal, told_digest
from shards.remote.address import is_url, joined
from shards.remote.source import MissingError, read_remote_index

Medium = Literal["pixels", "regions"]

FORMAT = "duoflow-shards"
VERSION = 1
INDEX_NAME = "index.json"
_HEAD_BYTES = 1024
"""Of an index, in which its digest stands."""

logger = logging.getLogger(__name__)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An annotation file that the shards were built from, by file name."""

    name: str
    bytes: int
    sha256: str


class Shard(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One tar file; the lists have one entry per sample, in the order of the tar, those about images one per image.

    Offsets and sizes are those of the member's data (behind its tar header), in bytes.
    """

    name: str
    bytes: int
    sha256: str
    image_ids: list[str]
    """The id of each sample: that of its image, where it has one."""
    image_formats: list[str]
    """Member extension of each image: jpg, png or webp; regions.safetensors where a detector saw it."""
    image_offsets: list[int]
    image_bytes: list[int]
    json_offsets: list[int]
    json_bytes: list[int]
    num_questions: list[int]
    """Items of each sample."""
    image_refs: list[str] = []
    """What the annotations call each image's file; empty where that is the image id."""
    images_per_sample: list[int] | msgspec.UnsetType = msgspec.UNSET
    """Not there where every sample has one image."""

    def images_of(self, position: int) -> range:
        """Where the images of the sample at a position stand in the lists about images."""
        first = self._first_image[position]
        return range(first, self._first_image[position + 1])

    @cached_property
    def _first_image(self) -> list[int]:
        if self.images_per_sample is msgspec.UNSET:
            return list(range(len(self.image_ids) + 1))
        return [0, *accumulate(self.images_per_sample)]


class SkippedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was left out, with all its questions, because it is missing or cannot be decoded."""

    image_id: str
    """The id of its sample."""
    image_ref: str
    num_questions: int
    reason: str
    """missing or unreadable."""
    image_refs: list[str] | msgspec.UnsetType = msgspec.UNSET
    """All images of its sample, where there are several."""


class RegionShape(msgspec.Struct, frozen=True, kw_only=True):
    """What all images of a split have in common whose regions are packed."""

    count: int
    """R"""
    width: int
    """F"""

    def __str__(self) -> str:
        return f"{self.count} regions of {self.width} numbers"


class SplitIndex(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything about a split except pixels and texts."""

    format: str = FORMAT
    version: int = VERSION
    digest: str = NO_DIGEST
    """sha256 of the index file with these 64 digits as zeros: the file protects itself. Set by `encode_index`."""
    reader: str
    """The annotation format it was built from."""
    sources: list[Source]
    options: dict[str, str | int | bool | None]
    """The options of the build that change its content: resize, balanced_only, limit, on_missing, shard_bytes; and
    lowercase_answers and ocr where they were given."""
    counts: dict[str, int]
    """images, questions, answered (questions with an answer); left out: missing_images, unreadable_images and their
    skipped_questions, duplicate_questions (identical repetitions), unbalanced_questions."""
    answers: dict[str, int]
    """The answer vocabulary with counts."""
    groups: dict[str, dict[str, int]]
    """Global group -> answer -> count."""
    types: dict[str, dict[str, int]] = {}
    """Classification (GQA: structural, semantic) -> type -> count of questions."""
    skipped: list[SkippedImage] = []
    images_sha256: str = ""
    """One digest over id, file name and content of every source image: tells whether the images have changed."""
    regions: RegionShape | msgspec.UnsetType = msgspec.UNSET
    """What all images have in common whose regions are packed; not there where the images themselves are."""
    shards: list[Shard]

    @property
    def has_words(self) -> bool:
        """Whether the words of its pages are packed."""
        return bool(self.options.get("ocr"))

    @property
    def medium(self) -> Medium:
        """What the images are packed as."""
        return "pixels" if self.regions is msgspec.UNSET else "regions"

    @cached_property
    def columns(self) -> Columns:
        """What is looked up of every sample: made from the lists of the shards, unless the index came without them."""
        return columns_of(
            [
                SampleLists(
                    shard.image_ids,
                    shard.image_offsets,
                    shard.image_bytes,
                    shard.json_offsets,
                    shard.json_bytes,
                    shard.num_questions,
                    None if shard.images_per_sample is msgspec.UNSET else shard.images_per_sample,
                )
                for shard in self.shards
            ]
        )

    @property
    def first_image(self) -> NDArray[np.int64]:
        """Number of the first image of each shard, and one past the last: (shards + 1,)."""
        return self.columns.first_sample

    @property
    def num_questions(self) -> NDArray[np.int32]:
        """Questions of each image, in index order: (images,)."""
        return self.columns.num_items

    @property
    def num_images(self) -> int:
        return len(self.num_questions)

    def locate(self, image: int) -> tuple[int, int]:
        """(shard number, position in the shard) of a sample, by its number in the split."""
        shard = int(np.searchsorted(self.first_image, image, side="right")) - 1
        return shard, image - int(self.first_image[shard])

    def samples_in(self, shard: int) -> range:
        """The numbers of the samples of a shard."""
        return range(int(self.first_image[shard]), int(self.first_image[shard + 1]))

    def images_of(self, sample: int) -> range:
        """The numbers of the images of a sample within its shard."""
        shard, _ = self.locate(sample)
        before = self.columns.images_of(int(self.first_image[shard])).start
        images = self.columns.images_of(sample)
        return range(images.start - before, images.stop - before)

    def without_lists(self, columns: Columns | None = None) -> Self:
        """The index with columns, its own or others, in place of the lists of its shards: 350 bytes an image less."""
        shards = [msgspec.structs.replace(shard, **_NO_LISTS) for shard in self.shards]
        light = msgspec.structs.replace(self, shards=shards, skipped=[])
        light.__dict__["columns"] = self.columns if columns is None else columns
        return light

    def __reduce__(self) -> tuple:
        """With its columns, which are no field: a process that gets them need not have the lists."""
        return _restored, (msgspec.structs.asdict(self), self.__dict__.get("columns"))


_NO_LISTS = {
    "image_ids": [],
    "image_formats": [],
    "image_offsets": [],
    "image_bytes": [],
    "json_offsets": [],
    "json_bytes": [],
    "num_questions": [],
    "image_refs": [],
    "images_per_sample": msgspec.UNSET,
}


def _restored(fields: dict[str, object], columns: Columns | None) -> SplitIndex:
    index = SplitIndex(**fields)
    if columns is not None:
        index.__dict__["columns"] = columns
    return index


def encode_index(index: SplitIndex) -> bytes:
    """The index as JSON text with keys in a fixed order, sealed with its own digest."""
    return seal(index)


def read_index_bytes(directory: str | Path) -> bytes:
    """The text of the index of a directory, or of a URL: there it is read once per process.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if isinstance(directory, str) and is_url(directory):
        try:
            return read_remote_index(directory, INDEX_NAME)
        except MissingError as error:
            raise DataError(
                f"{directory}: no {INDEX_NAME} there ({error}); expected the copy of a directory of finished shards: "
                "see whether bucket and path are right"
            ) from None
    path = Path(directory) / INDEX_NAME
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        found = "no such directory" if not path.parent.is_dir() else f"no {INDEX_NAME} in it"
        raise DataError(
            f"{directory}: {found}; expected a directory of finished shards: build one with `duoflow shards build`"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def decode_index(data: bytes, path: str | Path) -> SplitIndex:
    """The inverse of `encode_index`, without the test of its digest; `path` is for messages.

    Raises:
        DataError: this is no index, or one of another format version.
    """
    try:
        index = msgspec.json.decode(data, type=SplitIndex)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not an index of shards ({error}); build the shards again") from None
    if index.format != FORMAT or index.version != VERSION:
        raise DataError(
            f"{path}: format {index.format!r} version {index.version}; expected {FORMAT!r} version {VERSION}: "
            "build the shards again"
        )
    return index


def read_index(directory: str | Path) -> SplitIndex:
    """Read the index of a directory, or a URL, of shards.

    Raises:
        DataError: there is no complete set of shards there, or it cannot be reached, its index is damaged, or it is
            of another format version.
    """
    path = joined(directory, INDEX_NAME)
    data = read_index_bytes(directory)
    index = decode_index(data, path)
    if not is_intact(data):
        raise DataError(f"{path}: damaged or edited (its digest does not fit its content); build the shards again")
    return index


def open_index(directory: str | Path) -> SplitIndex:
    """The index of a directory, or a URL, of shards as a run has it: with columns in place of lists.

    Columns beside the index are mapped, and `index.json` is not read beyond its first lines; without them it is read
    once per process.

    Raises:
        DataError: as `read_index`; or there are columns, and they are damaged.
    """
    found = _mapped(directory)
    if found is not None:
        return found.index
    if isinstance(directory, str) and is_url(directory):
        return read_index(directory).without_lists()
    return _read_once(str(directory), _state_of(Path(directory) / INDEX_NAME))


def index_digest(directory: str | Path) -> str:
    """sha256 of the index file: names the exact content of a split, since the index holds every shard's sha256."""
    found = _mapped(directory)
    return hashlib.sha256(read_index_bytes(directory)).hexdigest() if found is None else found.sha256


class _Mapped(NamedTuple):
    index: SplitIndex
    sha256: str
    """Of the file of the whole index."""


def _mapped(directory: str | Path) -> _Mapped | None:
    """The index by the columns beside it; None where there are none, or those of another index."""
    if isinstance(directory, str) and is_url(directory):
        return None
    states = [_state_of(Path(directory) / name) for name in (INDEX_NAME, COLUMNS_NAME)]
    return None if None in states else _map_once(str(directory), *states)


@lru_cache(maxsize=8)
def _map_once(directory: str, *_: object) -> _Mapped | None:
    path = Path(directory) / COLUMNS_NAME
    header, begin = read_header(path)
    with (path.parent / INDEX_NAME).open("rb") as file:
        told = told_digest(file.read(_HEAD_BYTES))
    if told != header.index_digest:
        logger.warning(
            "%s: belongs to another index than the one beside it, which is read without; `duoflow shards upgrade %s` "
            "makes it again",
            path,
            directory,
        )
        return None
    light = decode_index(bytes(header.index), path)
    return _Mapped(light.without_lists(map_columns(path, header, begin)), header.index_sha256)


@lru_cache(maxsize=8)
def _read_once(directory: str, _: object) -> SplitIndex:
    return read_index(directory).without_lists()


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
