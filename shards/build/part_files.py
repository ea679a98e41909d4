"""A run of samples packed elsewhere: their bytes lie in a file of their own, and what is sent back is small."""

import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.build.packing import Packed, Task, Unusable, pack
from shards.errors import DataError, UserError

_PARTIAL, _WHOLE = ".partial", ".part"


class Part(NamedTuple):
    """Samples in a row, for one worker."""

    number: int
    tasks: list[Task]
    directory: Path
    """Where the file goes; the worker and the build both see it."""


class Aside(NamedTuple):
    """A packed sample whose bytes lie in the file of its part, one member after the other."""

    packed: Packed
    """Without those bytes."""
    sizes: list[int]
    sha256: str


class PackedPart(NamedTuple):
    """What became of a part."""

    number: int
    host: str
    path: Path
    results: list[Aside | Unusable]
    """In the order of the tasks, up to the fault."""
    fault: UserError | None


def pack_part(part: Part) -> PackedPart:
    """Pack every sample of a part into a file that no other attempt at this part writes to.

    A worker that is killed leaves `NUMBER.HOST.PID.RANDOM.partial`; only a whole file is called `.part`. A fault of the
    user's is a result and not an exception: nobody should try it again.
    """
    host = socket.gethostname()
    name = f"{part.number:06d}.{host}.{os.getpid()}.{secrets.token_hex(4)}"
    partial, whole = part.directory / (name + _PARTIAL), part.directory / (name + _WHOLE)
    results: list[Aside | Unusable] = []
    fault: UserError | None = None
    try:
        with partial.open("xb") as file:
            try:
                for task in part.tasks:
                    result = pack(task)
                    results.append(result if isinstance(result, Unusable) else _lay_aside(result, file))
            except UserError as error:
                fault = error
        partial.rename(whole)
    except OSError as error:
        results = []
        fault = DataError(
            f"{error.filename or part.directory}: {error.strerror or error} on {host}; nothing was changed; see that "
            "every node sees the directory and has room in it, or choose another --out"
        )
    return PackedPart(part.number, host, whole, results, fault)


def take_up(packed: PackedPart, part: Part, died: Callable[[str], None]) -> Iterator[Packed | Unusable]:
    """The results of a part with their bytes; at the end, every file of this part is removed.

    Args:
        packed: what a worker sent back.
        part: what it was asked for.
        died: told, in words, of every other attempt at this part: its worker was killed.

    Raises:
        UserError: the fault that the worker met; its file is not as it was written; or what it calls unusable can be
            used here.
    """
    if packed.results:
        with _opened(packed) as file:
            for task, result in zip(part.tasks, packed.results, strict=False):
                yield _agreed(task, result, packed.host) if isinstance(result, Unusable) else _filled(result, file)
    if packed.fault is not None:
        raise packed.fault
    for path in part.directory.glob(f"{part.number:06d}.*"):
        if path != packed.path:
            host, process = _origin(path)
            died(f"packing: process {process} on {host} was killed in part {part.number}; done again on {packed.host}")
        path.unlink()


def _origin(path: Path) -> tuple[str, str]:
    """(host, process id) that a file's name speaks of; a host's name may have dots."""
    _, _, rest = path.name.partition(".")
    host, process, _, _ = rest.rsplit(".", 3)
    return host, process


def _lay_aside(packed: Packed, file: BinaryIO) -> Aside:
    sample = packed.sample
    members = [*(image.data for image in sample.images), sample.json]
    digest = hashlib.sha256()
    for data in members:
        file.write(data)
        digest.update(data)
    images = tuple(image._replace(data=b"") for image in sample.images)
    slim = packed._replace(sample=sample._replace(images=images, json=b""))
    return Aside(slim, list(map(len, members)), digest.hexdigest())


def _opened(packed: PackedPart) -> BinaryIO:
    try:
        return packed.path.open("rb")
    except OSError as error:
        raise DataError(
            f"{packed.path}: {error.strerror}, and {packed.host} has written it; expected a file system that all "
            "nodes share; choose another --out"
        ) from None


def _filled(aside: Aside, file: BinaryIO) -> Packed:
    digest = hashlib.sha256()
    members = []
    for size in aside.sizes:
        members.append(file.read(size))
        digest.update(members[-1])
    if digest.hexdigest() != aside.sha256:
        raise DataError(
            f"{file.name}: sample {aside.packed.sample.sample_id!r} does not read as it was written; expected a file "
            "system that shows what another node has closed"
        )
    *images, text = members
    sample = aside.packed.sample
    filled = tuple(image._replace(data=data) for image, data in zip(sample.images, images, strict=True))
    return aside.packed._replace(sample=sample._replace(images=filled, json=text))


def _agreed(task: Task, unusable: Unusable, host: str) -> Unusable:
    """A node that lacks a mount finds all of its images missing: what it says is believed if it is so here, too."""
    if pack(task) != unusable:
        raise DataError(f"{host}: {unusable.message}, but here it is not so; see that every node sees the same images")
    return unusable
