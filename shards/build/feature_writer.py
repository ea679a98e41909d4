"""Tokens of the images of a shard in, a tar of its name out: written aside, and there when it is whole."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.build.tar_writer import image_extensions, sample_key
from shards.format.features import FeatureShard, Stream, TokenLayout, Tokens, tar_member
from shards.format.index import SplitIndex


def member_names(index: SplitIndex, shard: int, stream: Stream) -> Iterator[str]:
    """`KEY.vision.safetensors` for each image of a shard; of several images of a sample `KEY.0.vision.safetensors`."""
    for sample in index.samples_in(shard):
        extensions = [f"{stream}.safetensors"] * len(index.images_of(sample))
        yield from (f"{sample_key(sample)}.{ending}" for ending in image_extensions(extensions))


class FeatureTar:
    """A tar that is being written; a context manager that leaves it in its place, or after an error nothing.

    Raises (all methods):
        OSError: the disk is full or fails.
    """

    def __init__(self, path: Path, layout: TokenLayout, names: list[str]) -> None:
        self._path, self._layout, self._names = path, layout, names
        self._aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        self._digest, self._written = hashlib.sha256(), 0

    def __enter__(self) -> Self:
        self._file = self._aside.open("wb")
        return self

    def add(self, images: list[Tokens]) -> None:
        """The tokens of the next images."""
        for tokens in images:
            self._write(tar_member(self._names[self._written], self._layout.encode(tokens)))
            self._written += 1

    def finish(self) -> FeatureShard:
        """Put the tar in its place: all its images are there."""
        assert self._written == len(self._names), (self._written, len(self._names))
        size = self._layout.tar_bytes(self._written)
        self._write(b"\0" * (size - self._file.tell()))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._aside.replace(self._path)
        return FeatureShard(name=self._path.name, images=self._written, bytes=size, sha256=self._digest.hexdigest())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what a full disk did not take is tried again, and this file is for nobody
            self._file.close()
        self._aside.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)


def discard_unfinished(directory: Path) -> None:
    """Remove the tars that processes which were killed have not finished."""
    for path in directory.glob(".*.partial"):
        path.unlink(missing_ok=True)
