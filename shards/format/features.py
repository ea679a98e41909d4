"""Cached tokens of a frozen encoder: tars with one member per image, in the order of the shards, and `index.json`.

A member is a safetensors file. All members of a cache have one size, so that the place of an image's tokens is
arithmetic, and each protects itself: its header names the cache that it is part of and the CRC-32 of its numbers.

Shapes: N tokens of an image, D width.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError
from shards.format.index import INDEX_NAME, SplitIndex
from shards.format.sealed import NO_DIGEST, is_intact, seal

FORMAT = "duoflow-features"
VERSION = 1
"""Also of how this code makes tokens from pixels: a change there is another version."""

Stream = Literal["vision", "second_stream"]
TokenType = Literal["fp16", "int8"]
"""How tokens are kept: as fp16, or as int8 with an fp32 scale for each token."""

_NAMES = {"fp16": ("F16", np.float16), "int8": ("I8", np.int8)}
_SCALE_BYTES = 4
_LENGTH_BYTES = 8
"""In front of a safetensors header."""
_INT8_LARGEST = 127
_MEMBER_MODE = 0o444


class Tokens(NamedTuple):
    """The tokens of one image as they are kept."""

    values: NDArray
    """(N, D) float16 or int8"""
    scales: NDArray[np.float32] | None
    """(N, 1) what the values of each token are multiplied with; None where they are themselves"""


class TokenLayout(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What all members of a cache have in common."""

    key: str
    """Of the cache: the beginning of `FeatureIndex.key`."""
    dtype: TokenType
    tokens: int
    """N"""
    width: int
    """D"""

    @property
    def data_bytes(self) -> int:
        """Bytes of the numbers of an image."""
        scales = _SCALE_BYTES * self.tokens if self.dtype == "int8" else 0
        return scales + self.tokens * self.width * np.dtype(_NAMES[self.dtype][1]).itemsize

    @cached_property
    def member_bytes(self) -> int:
        """Bytes of a member."""
        return len(self.header(0)) + self.data_bytes

    @cached_property
    def stride(self) -> int:
        """Bytes from one member's data to the next one's."""
        blocks = -(-self.member_bytes // tarfile.BLOCKSIZE)
        return (1 + blocks) * tarfile.BLOCKSIZE

    def offset(self, image: int) -> int:
        """Where the data of the member of an image begins, by its number in the shard."""
        return image * self.stride + tarfile.BLOCKSIZE

    def tar_bytes(self, images: int) -> int:
        """Bytes of a tar: two blocks end it, and it is filled up to whole records."""
        end = images * self.stride + 2 * tarfile.BLOCKSIZE
        return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def header(self, checksum: int) -> bytes:
        """What stands in front of the numbers; as long for every checksum."""
        name, _ = _NAMES[self.dtype]
        at = _SCALE_BYTES * self.tokens if self.dtype == "int8" else 0
        entries: dict[str, object] = {"__metadata__": {"cache": self.key, "crc32": f"{checksum:08x}"}}
        if at:
            entries["scales"] = {"dtype": "F32", "shape": [self.tokens, 1], "data_offsets": [0, at]}
        shape = [self.tokens, self.width]
        entries["values"] = {"dtype": name, "shape": shape, "data_offsets": [at, self.data_bytes]}
        text = msgspec.json.encode(entries)
        text += b" " * (-len(text) % _LENGTH_BYTES)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text

    def encode(self, tokens: Tokens) -> bytes:
        """The member of an image."""
        parts = [tokens.values] if tokens.scales is None else [tokens.scales, tokens.values]
        data = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        assert len(data) == self.data_bytes, (len(data), self)
        return self.header(zlib.crc32(data)) + data

    def decode(self, member: NDArray[np.uint8]) -> Tokens | None:
        """Views of the numbers in a member; None if a byte of it is not as it was written."""
        start = self.member_bytes - self.data_bytes
        data = member[start:]
        if member[:start].tobytes() != self.header(zlib.crc32(data)):
            return None
        at = self.data_bytes - self.tokens * self.width * np.dtype(_NAMES[self.dtype][1]).itemsize
        values = data[at:].view(_NAMES[self.dtype][1]).reshape(self.tokens, self.width)
        return Tokens(values, data[:at].view(np.float32).reshape(-1, 1) if at else None)


class FeatureShard(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of the images of one shard, in a tar of its name."""

    name: str
    images: int
    bytes: int
    sha256: str


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What tokens depend on."""

    stream: Stream
    weights: str
    """sha256 of the encoder's weights."""
    preprocessing: str
    """How pixels come to the encoder, and what of its output is kept."""
    images: str
    """One digest over the shards, which hold the images."""

    def key(self, dtype: TokenType) -> str:
        """One digest over all of it."""
        parts = (FORMAT, str(VERSION), dtype, *msgspec.structs.astuple(self))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def difference(self, other: "Origin") -> str | None:
        """The first thing in which another origin differs, in words; None if they are the same."""
        if self.weights != other.weights:
            return f"it was made with other weights of model.{self.stream}"
        if self.preprocessing != other.preprocessing:
            return f"it was made from {other.preprocessing}, and this recipe has {self.preprocessing}"
        return "it was made from other shards" if self.images != other.images else None


class FeatureIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a cache except its tokens. Written last: without it a cache is not finished."""

    format: str = FORMAT
    version: int = VERSION
    digest: str = NO_DIGEST
    """Of this file: it protects itself."""
    origin: Origin
    layout: TokenLayout
    precision: str
    """In which the encoder computed."""
    shards: list[FeatureShard]

    @property
    def bytes(self) -> int:
        """Of all tars."""
        return sum(shard.bytes for shard in self.shards)


def cache_name(origin: Origin, dtype: TokenType) -> str:
    """The directory of a cache."""
    return f"{origin.stream}.{dtype}.{origin.key(dtype)[:12]}"


def images_digest(index: SplitIndex) -> str:
    """One digest over the shards of a split: names the images and their order."""
    lines = "".join(f"{shard.name} {shard.sha256}\n" for shard in index.shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def image_counts(index: SplitIndex) -> list[int]:
    """Images of each shard."""
    samples = map(index.samples_in, range(len(index.shards)))
    return [index.images_of(inside[-1]).stop if inside else 0 for inside in samples]


def quantize(tokens: NDArray[np.float32], dtype: TokenType) -> list[Tokens]:
    """(B, N, D) to what is kept of each image.

    Raises:
        ValueError: a value is not finite, or too large for fp16.
    """
    if not np.isfinite(tokens).all():
        raise ValueError("values that are not finite")
    if dtype == "int8":
        largest = np.abs(tokens).max(axis=-1, keepdims=True)
        scales = np.where(largest > 0, largest / _INT8_LARGEST, 1.0).astype(np.float32)
        values = np.rint(tokens / scales).clip(-_INT8_LARGEST, _INT8_LARGEST).astype(np.int8)
        return [Tokens(*pair) for pair in zip(values, scales, strict=True)]
    largest = float(np.abs(tokens).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise ValueError(f"values up to {largest:.3g}, beyond fp16; keep them as int8")
    return [Tokens(values, None) for values in tokens.astype(np.float16)]


def read_feature_index(directory: Path) -> FeatureIndex:
    """The index of a cache.

    Raises:
        DataError: in words that follow the name of the directory: it is not finished, damaged, or of another version.
    """
    try:
        data = (directory / INDEX_NAME).read_bytes()
        index = msgspec.json.decode(data, type=FeatureIndex)
    except FileNotFoundError:
        raise DataError(f"it is not finished (no {INDEX_NAME})") from None
    except OSError as error:
        raise DataError(f"its {INDEX_NAME} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"its {INDEX_NAME} is none of a cache ({error})") from None
    if (index.format, index.version) != (FORMAT, VERSION):
        raise DataError(f"it has format {index.format!r} version {index.version}, not {FORMAT!r} version {VERSION}")
    if not is_intact(data):
        raise DataError(f"its {INDEX_NAME} is damaged")
    return index


def encode_feature_index(index: FeatureIndex) -> bytes:
    """The text of an index."""
    return seal(index)


def size_fault(directory: Path, index: FeatureIndex, counts: Sequence[int]) -> str | None:
    """Whether every tar is there, in its size; what is wrong in words that follow the name of the directory.

    Args:
        counts: images of each shard of the split.
    """
    if [shard.images for shard in index.shards] != list(counts):
        return "it has other numbers of images than the shards"
    for shard in index.shards:
        try:
            size = (directory / shard.name).stat().st_size
        except OSError:
            return f"its {shard.name} is missing"
        if size != shard.bytes:
            return f"its {shard.name} has {size} bytes, not {shard.bytes}"
    return None


def sound_digest(path: Path, layout: TokenLayout, images: int) -> str | None:
    """The sha256 of a tar in which every byte of every member is as it was written; None of any other file."""
    digest = hashlib.sha256()
    try:
        if path.stat().st_size != layout.tar_bytes(images):
            return None
        with path.open("rb") as file:
            for _ in range(images):
                block = file.read(layout.stride)
                digest.update(block)
                start = tarfile.BLOCKSIZE
                if layout.decode(np.frombuffer(block, np.uint8)[start : start + layout.member_bytes]) is None:
                    return None
            digest.update(file.read())
    except OSError:
        return None
    return digest.hexdigest()


def tar_member(name: str, data: bytes) -> bytes:
    """A member of a tar, with its header in front and filled up to whole blocks."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), _MEMBER_MODE
    return info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
