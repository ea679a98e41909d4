"""Whether another node sees what this one sees: the images, and the directory that parts are written to."""

import secrets
from pathlib import Path
from typing import NamedTuple

from shards.build.packing import Source, fingerprint

_TOKEN = "token"


class Sight(NamedTuple):
    """What a node is asked to look at, and what is there."""

    source: Source
    """A sample of the build."""
    fingerprint: str
    directory: Path | None
    """Where parts are written; None where nothing is to be written."""
    token: str
    """What this node has written into a file there."""


class Seen(NamedTuple):
    """What a node answers."""

    fault: str | None
    reply: str
    """Name of the file that it wrote into the directory."""


def sight_of(source: Source, directory: Path | None) -> Sight:
    """What this node sees.

    Raises:
        OSError: the directory cannot be written.
    """
    token = secrets.token_hex(16)
    if directory is not None:
        (directory / _TOKEN).write_text(token)
    return Sight(source, fingerprint(source), directory, token)


def look(sight: Sight) -> Seen:
    """On another node: compare, and leave a file in the directory."""
    reply = f"seen-{secrets.token_hex(8)}"
    if sight.directory is not None:
        try:
            found = (sight.directory / _TOKEN).read_text()
            (sight.directory / reply).touch(exist_ok=False)
        except OSError as error:
            return Seen(f"{sight.directory}: {error.strerror or error}", reply)
        if found != sight.token:
            return Seen(f"{sight.directory}: another directory of this name", reply)
    if fingerprint(sight.source) != sight.fingerprint:
        (first, *_) = sight.source.origins
        error = first.load().error
        return Seen(str(error) if error is not None else f"image {first.ref!r}: another file than here", reply)
    return Seen(None, reply)


def arrived(sight: Sight, seen: Seen) -> str | None:
    """What is wrong with a node's answer, as seen from here; removes the file that it left."""
    if seen.fault is None and sight.directory is not None:
        try:
            (sight.directory / seen.reply).unlink()
        except OSError as error:
            return f"{sight.directory}: what it wrote there is not seen here: {error.strerror or error}"
    return seen.fault
