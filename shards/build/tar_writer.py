"""Samples in, numbered tars of bounded size out: same samples, same bytes."""

import hashlib
import importlib
import os
import sys
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET

from shards.format.index import Shard

BLOCK = tarfile.BLOCKSIZE
MEMBER_MODE = 0o444


class EncodedImage(NamedTuple):
    """An image as it goes into a shard."""

    ref: str
    """What the annotations call its file."""
    extension: str
    data: bytes


class Sample(NamedTuple):
    """The images of a sample, encoded, and its JSON."""

    sample_id: str
    images: tuple[EncodedImage, ...]
    json: bytes
    num_items: int


def sample_key(sample: int) -> str:
    """The name of a sample's members, by its number in the split."""
    return f"{sample:09d}"


def image_extensions(extensions: Sequence[str]) -> list[str]:
    """What follows the key of a sample in the names of its images: `jpg`, or `0.jpg` and `1.jpg` where there are two.

    A webdataset pipeline takes what stands behind the first dot of a name as the field of the sample.
    """
    if len(extensions) == 1:
        return list(extensions)
    return [f"{number}.{extension}" for number, extension in enumerate(extensions)]


def shard_name(shard: int) -> str:
    """The file name of a shard, by its number."""
    return f"{shard:06d}.tar"


def padded(size: int) -> int:
    """Bytes that a member's data takes up in a tar."""
    return -(-size // BLOCK) * BLOCK


class TarShards:
    """Writes `000000.tar`, `000001.tar`, ... into a directory, each with webdataset's writer.

    A sample is `KEY.jpg|png|webp` (of several images `KEY.0.jpg`, `KEY.1.jpg`, ...), then `KEY.json`. A tar is closed
    before it would exceed `shard_bytes`; a sample larger than that gets a tar of its own.
    """

    def __init__(self, directory: Path, shard_bytes: int) -> None:
        self.shards: list[Shard] = []
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._open: _OpenTar | None = None
        self._num_samples = 0

    def add(self, sample: Sample) -> None:
        """Append a sample to the current tar, or to the next one if it does not fit."""
        if self._open is not None and self._open.size_with(sample) > self._shard_bytes:
            self.close()
        if self._open is None:
            self._open = _OpenTar(self._directory / shard_name(len(self.shards)))
        self._open.add(sample_key(self._num_samples), sample)
        self._num_samples += 1

    def close(self) -> None:
        """Finish the current tar: after this, `shards` describes every sample."""
        if self._open is not None:
            tar, self._open = self._open, None
            self.shards.append(tar.finish())

    def abandon(self) -> None:
        """Close the file of an unfinished tar."""
        if self._open is not None:
            self._open.abandon()


class _Member(NamedTuple):
    """A file in a tar: where its data begins, and how many bytes it has."""

    name: str
    offset: int
    size: int


class _OpenTar:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._samples: list[Sample] = []
        self._image_members: list[_Member] = []
        self._json_members: list[_Member] = []
        self._members: list[_Member] = []
        self._file = path.open("wb")
        self._tar = _webdataset_writer()(self._file, user="", group="", mode=MEMBER_MODE, mtime=0, encoder=False)

    def size_with(self, sample: Sample) -> int:
        """Bytes of the tar if this sample were its last: two blocks end it, and it is filled up to whole records."""
        sizes = [*(len(image.data) for image in sample.images), len(sample.json)]
        end = self._at + sum(BLOCK + padded(size) for size in sizes) + 2 * BLOCK
        return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def add(self, key: str, sample: Sample) -> None:
        # A call for each member, because one would sort them by extension and put a png behind its json.
        extensions = image_extensions([image.extension for image in sample.images])
        for extension, image in zip(extensions, sample.images, strict=True):
            self._image_members.append(self._member(key, extension, image.data))
        self._json_members.append(self._member(key, "json", sample.json))
        images = tuple(image._replace(data=b"") for image in sample.images)
        self._samples.append(sample._replace(images=images, json=b""))

    def finish(self) -> Shard:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with tarfile.open(self._path, "r:") as tar:
            found = [(member.name, member.offset_data, member.size) for member in tar]
        assert found == self._members, f"{self._path}: the finished tar holds other members than were written"
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        images = [image for sample in self._samples for image in sample.images]
        refs, ids = [image.ref for image in images], [sample.sample_id for sample in self._samples]
        counts = [len(sample.images) for sample in self._samples]
        return Shard(
            name=self._path.name,
            bytes=self._path.stat().st_size,
            sha256=digest,
            image_ids=ids,
            image_formats=[image.extension for image in images],
            image_offsets=[member.offset for member in self._image_members],
            image_bytes=[member.size for member in self._image_members],
            json_offsets=[member.offset for member in self._json_members],
            json_bytes=[member.size for member in self._json_members],
            num_questions=[sample.num_items for sample in self._samples],
            image_refs=[] if refs == ids else refs,
            images_per_sample=UNSET if set(counts) == {1} else counts,
        )

    def abandon(self) -> None:
        # Closed even on a full disk: the stream inside would try again, and complain, when it is collected.
        with suppress(OSError):
            self._tar.close()
        with suppress(OSError):
            self._file.close()

    def _member(self, key: str, extension: str, data: bytes) -> "_Member":
        self._tar.write({"__key__": key, extension: data})
        member = _Member(f"{key}.{extension}", self._at + BLOCK, len(data))
        self._at = member.offset + padded(member.size)
        self._members.append(member)
        return member


def _webdataset_writer() -> Any:
    """webdataset's TarWriter, without torch.

    webdataset imports torch for its readers (2 s and 200 MB that packing has no use for) and does without it where it
    is not installed. So torch is hidden during this import, and the package is forgotten again: the next
    `import webdataset` of the process gets the whole of it.
    """
    if "torch" in sys.modules or "webdataset" in sys.modules:
        return importlib.import_module("webdataset.writer").TarWriter
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("webdataset.writer").TarWriter
    finally:
        del sys.modules["torch"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
            del sys.modules[name]
