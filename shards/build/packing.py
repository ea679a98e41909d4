"""Images and the items about them become one sample, in as many processes as there are cores; order never changes."""

import hashlib
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import NamedTuple, TypeVar

from shards.annotations import READERS
from shards.build.media import Loaded, Origin
from shards.build.tally import tally
from shards.build.tar_writer import Sample
from shards.errors import UserError
from shards.format.images import MissingImage, UnreadableImage
from shards.format.records import Kind, Picture, encode_sample

AHEAD = 4
"""Tasks in flight per process: bounds memory, and hides one slow image."""


T = TypeVar("T")
R = TypeVar("R")


class Source(NamedTuple):
    """Where the images of a sample are."""

    sample_id: str
    origins: tuple[Origin, ...]

    @property
    def refs(self) -> tuple[str, ...]:
        """What the annotations call them."""
        return tuple(origin.ref for origin in self.origins)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The sample's id for its only image; of several, what the annotations call each one's file."""
        return (self.sample_id,) if len(self.origins) == 1 else self.refs


class Task(NamedTuple):
    """What a process needs to pack one sample."""

    source: Source
    items: list[bytes]
    resize: int | None
    format: str


class Packed(NamedTuple):
    """A sample, and what the index says about it."""

    sample: Sample
    kinds: Counter[Kind]
    fingerprint: str


class Unusable(NamedTuple):
    """A sample that cannot be packed, because of one of its images."""

    source: Source
    image_ref: str
    """That image."""
    num_items: int
    reason: str
    message: str
    fingerprint: str


def pack(task: Task) -> Packed | Unusable:
    """Read, check and, if asked, resize the images of a sample, and put its items beside them.

    Raises:
        DataError: the annotation's path leads out of the image directory.
    """
    source, found = task.source, _load(task.source)
    mark = _fingerprint(source, found)
    images, pictures = [], []
    for image_id, origin, file in zip(source.image_ids, source.origins, found, strict=True):
        try:
            if file.error is not None:
                raise file.error
            image, (width, height) = origin.encode(file, task.resize)
        except (MissingImage, UnreadableImage) as error:
            reason = "missing" if isinstance(error, MissingImage) else "unreadable"
            message = f"{error} ({_named(source)}, {len(task.items)} questions)"
            return Unusable(source, origin.ref, len(task.items), reason, message, mark)
        images.append(image)
        pictures.append(Picture(image_id=image_id, width=width, height=height))
    reader = READERS[task.format]
    items = [reader.decode_item(body) for body in task.items]
    text = encode_sample(reader.sample.of(source.sample_id, pictures, items))
    return Packed(Sample(source.sample_id, tuple(images), text, len(items)), tally(items), mark)


def fingerprint(source: Source) -> str:
    """Lines that change when the source images do: for each its id, file name, sha256 of the content."""
    return _fingerprint(source, _load(source))


def map_in_order(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """`map` over processes: results in the order of the tasks, few of them in memory.

    Args:
        function: a module's function, without side effects.
        tasks: taken as results are asked for.
        workers: processes; with 0 or 1 the work is done here.

    Raises:
        UserError: a process was killed from outside, for want of memory as a rule.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: a fork copies locks that other threads hold, and file descriptors that must close.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker)
    pending: deque[Future[R]] = deque()
    try:
        for task in tasks:
            with _no_interrupt():
                pending.append(pool.submit(function, task))
            if len(pending) >= workers * AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} processes was killed, perhaps for want of memory; try fewer (--workers)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _named(source: Source) -> str:
    return f"image {source.sample_id!r}" if len(source.origins) == 1 else f"one of the images of {source.sample_id!r}"


def _load(source: Source) -> list[Loaded]:
    return [origin.load() for origin in source.origins]


def _fingerprint(source: Source, files: list[Loaded]) -> str:
    return "".join(
        f"{image_id}\0{file.path.name if file.path else ''}\0{hashlib.sha256(file.data).hexdigest()}\n"
        for image_id, file in zip(source.image_ids, files, strict=True)
    )


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold back Ctrl-C. A process started here inherits this for good: it is the parent that ends it."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process would wait for ever for a parent that was killed."""
    connection.wait([parent_process().sentinel])
    os._exit(1)
