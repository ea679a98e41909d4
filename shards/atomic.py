"""Files that a reader, or a crash at any moment, finds old or new, never half written."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from shards.errors import UserError


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file aside, flush it to the disk and rename it into place.

    What comes in pieces is never whole in memory. The directory is made if it is missing. Two writers of one file do
    not mix: the last one stands.

    Raises:
        OSError: the disk is full or fails; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: hosts, and containers above all, have the same ones, and may share this disk.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with aside.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames inside a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(option: str, path: Path) -> None:
    """Refuse a file that cannot be written before anything is computed for it. Makes no directory: a mistyped path
    should not leave one.

    Args:
        option: what a message calls it, such as `--json`.

    Raises:
        UserError: it is a directory, or its own directory is not there or cannot be written to.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a directory; name a file")
    if not path.parent.is_dir():
        found = "is no directory" if path.parent.exists() else "is not there"
        remedy = "name a file elsewhere" if path.parent.exists() else f"make it with `mkdir -p {path.parent}`"
        raise UserError(f"{option} {path}: cannot be made: the directory {path.parent} {found}; {remedy}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path}: {path.parent} cannot be written to")
