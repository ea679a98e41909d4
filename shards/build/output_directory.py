"""A directory of shards is complete, or it says that it is not: staging, publishing and whose directory it is."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import sync_directory, write_atomically
from shards.errors import DataError
from shards.format.columns import COLUMNS_NAME
from shards.format.index import INDEX_NAME, SplitIndex, encode_index, read_index

STAGING_NAME = ".building"
_shard_name = re.compile(r"\d{6,}\.tar")


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make the directory, and keep every other build out of it meanwhile; remove it if it was made for nothing.

    Raises:
        DataError: another build is writing here.
        OSError: no directory can be made.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, directory)
        try:
            yield
        finally:
            if made and not any(directory.iterdir()):
                directory.rmdir()
    finally:
        os.close(descriptor)


def present_index(directory: Path) -> SplitIndex | None:
    """The index of what the directory holds; None if it is empty, or holds what a killed build of ours left.

    Raises:
        DataError: the directory holds something else, or a damaged index.
    """
    names = {path.name for path in directory.iterdir()}
    if INDEX_NAME in names:
        return read_index(directory)
    # Tars without an index are ours only if the staging directory of an interrupted `publish` stands beside them.
    foreign = {name for name in names if STAGING_NAME not in names or not _is_ours(name)} - {STAGING_NAME}
    if foreign:
        raise DataError(
            f"{directory}: holds {min(foreign)!r} but no {INDEX_NAME}; expected an empty or a new directory: "
            "choose another --out, or remove it"
        )
    return None


@contextmanager
def staging_in(directory: Path) -> Iterator[Path]:
    """An empty directory inside `directory`, on the same file system, for files that are not finished.

    It is removed at the end, with every shard that an interrupted `publish` had moved out of it.

    Raises:
        OSError: the directory cannot be written.
    """
    staging = directory / STAGING_NAME
    discard_unfinished(directory)
    staging.mkdir()
    try:
        yield staging
    finally:
        discard_unfinished(directory)


def discard_unfinished(directory: Path) -> None:
    """Remove what a build that did not end left: its staging directory, and shards that no index describes.

    Raises:
        OSError: the directory cannot be written.
    """
    staging = directory / STAGING_NAME
    if not staging.exists():
        return
    if not (directory / INDEX_NAME).exists():
        _remove_shards(directory)
    shutil.rmtree(staging)


def publish(directory: Path, index: SplitIndex) -> None:
    """Move the staged shards and columns into their places and write the index, last.

    While there is no index, the directory is unfinished for every reader; the next build cleans it.
    """
    staging = directory / STAGING_NAME
    staged_index = staging / INDEX_NAME
    write_atomically(staged_index, encode_index(index))  # a disk may be full, and the old shards are still there
    (directory / INDEX_NAME).unlink(missing_ok=True)
    sync_directory(directory)
    _remove_shards(directory)
    for name in [shard.name for shard in index.shards] + [COLUMNS_NAME]:
        os.replace(staging / name, directory / name)
    sync_directory(directory)
    os.replace(staged_index, directory / INDEX_NAME)
    sync_directory(directory)


def _remove_shards(directory: Path) -> None:
    for path in directory.iterdir():
        if _is_ours(path.name):
            path.unlink()


def _is_ours(name: str) -> bool:
    """Whether a build puts a file of that name there before the index."""
    return name == COLUMNS_NAME or _shard_name.fullmatch(name) is not None


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{directory}: another build is writing here; wait for it, or choose another --out") from None
    except OSError:
        return  # some network file systems lock no directories; the build works, only unguarded
