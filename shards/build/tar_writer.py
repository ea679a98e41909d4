"""Samples in, numbered tars of bounded size out: same samples, same bytes."""

import hashlib
import importlib
import os
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from shards.format.index import Shard

BLOCK = tarfile.BLOCKSIZE
MEMBER_MODE = 0o444


class Sample(NamedTuple):
    """One image, encoded, and its JSON."""

    image_id: str
    image_ref: str
    extension: str
    image: bytes
    json: bytes
    num_questions: int


def sample_key(image: int) -> str:
    """The name of an image's members, by its number in the split."""
    return f"{image:09d}"


def shard_name(shard: int) -> str:
    """The file name of a shard, by its number."""
    return f"{shard:06d}.tar"


def padded(size: int) -> int:
    """Bytes that a member's data takes up in a tar."""
    return -(-size // BLOCK) * BLOCK


class TarShards:
    """Writes `000000.tar`, `000001.tar`, ... into a directory, each with webdataset's writer.

    A sample is `KEY.jpg|png|webp`, then `KEY.json`. A tar is closed before it would exceed `shard_bytes`; a sample
    larger than that gets a tar of its own.
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


class _OpenTar:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._samples: list[Sample] = []
        self._offsets: list[tuple[int, int]] = []
        self._members: list[tuple[str, int, int]] = []
        self._file = path.open("wb")
        self._tar = _webdataset_writer()(self._file, user="", group="", mode=MEMBER_MODE, mtime=0, encoder=False)

    def size_with(self, sample: Sample) -> int:
        """Bytes of the tar if this sample were its last: two blocks end it, and it is filled up to whole records."""
        end = self._at + 2 * BLOCK + padded(len(sample.image)) + padded(len(sample.json)) + 2 * BLOCK
        return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def add(self, key: str, sample: Sample) -> None:
        # Two calls, because one would sort the members by extension and put a png behind its json.
        image = self._member(key, sample.extension, sample.image)
        text = self._member(key, "json", sample.json)
        self._offsets.append((image, text))
        self._samples.append(sample._replace(image=b"", json=b""))

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
        refs = [sample.image_ref for sample in self._samples]
        ids = [sample.image_id for sample in self._samples]
        return Shard(
            name=self._path.name,
            bytes=self._path.stat().st_size,
            sha256=digest,
            image_ids=ids,
            image_formats=[sample.extension for sample in self._samples],
            image_offsets=[image for image, _ in self._offsets],
            image_bytes=[size for _, _, size in self._members[0::2]],
            json_offsets=[text for _, text in self._offsets],
            json_bytes=[size for _, _, size in self._members[1::2]],
            num_questions=[sample.num_questions for sample in self._samples],
            image_refs=[] if refs == ids else refs,
        )

    def abandon(self) -> None:
        # Closed even on a full disk: the stream inside would try again, and complain, when it is collected.
        with suppress(OSError):
            self._tar.close()
        with suppress(OSError):
            self._file.close()

    def _member(self, key: str, extension: str, data: bytes) -> int:
        self._tar.write({"__key__": key, extension: data})
        offset = self._at + BLOCK
        self._at = offset + padded(len(data))
        self._members.append((f"{key}.{extension}", offset, len(data)))
        return offset


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
