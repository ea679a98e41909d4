"""One image and its questions become one sample, in as many processes as there are cores; order never changes."""

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
from pathlib import Path
from typing import NamedTuple, TypeVar

from shards.build.grouping import decode_question
from shards.build.tally import Kind, tally
from shards.build.tar_writer import Sample
from shards.errors import UserError
from shards.format.images import MissingImage, UnreadableImage, decode_image, find_image, read_image, shrink
from shards.format.records import ImageSample, encode_sample

AHEAD = 4
"""Tasks in flight per process: bounds memory, and hides one slow image."""


T = TypeVar("T")
R = TypeVar("R")


class Source(NamedTuple):
    """Where an image is."""

    image_id: str
    image_ref: str
    directory: Path
    endings: tuple[str, ...]


class Task(NamedTuple):
    """What a process needs to pack one image."""

    source: Source
    questions: list[bytes]
    resize: int | None


class Packed(NamedTuple):
    """A sample, and what the index says about it."""

    sample: Sample
    kinds: Counter[Kind]
    fingerprint: str


class Unusable(NamedTuple):
    """An image that cannot be packed."""

    image_id: str
    image_ref: str
    num_questions: int
    reason: str
    message: str
    fingerprint: str


class _File(NamedTuple):
    path: Path | None
    data: bytes
    error: MissingImage | UnreadableImage | None


def pack(task: Task) -> Packed | Unusable:
    """Read, decode and, if asked, resize one image, and put its questions beside it.

    Raises:
        DataError: the annotation's path leads out of the image directory.
    """
    image_id, ref, _, _ = task.source
    found = _load(task.source)
    mark = _fingerprint(image_id, found)
    try:
        if found.error is not None:
            raise found.error
        decoded = decode_image(found.data, found.path)
    except (MissingImage, UnreadableImage) as error:
        reason = "missing" if isinstance(error, MissingImage) else "unreadable"
        message = f"{error} (image {image_id!r}, {len(task.questions)} questions)"
        return Unusable(image_id, ref, len(task.questions), reason, message, mark)
    questions = tuple(decode_question(body) for body in task.questions)
    smaller = shrink(decoded, task.resize) if task.resize else None
    width, height = decoded.size
    text = encode_sample(ImageSample(image_id=image_id, width=width, height=height, questions=questions))
    sample = Sample(
        image_id=image_id,
        image_ref=ref,
        extension=decoded.extension if smaller is None else "jpg",
        image=found.data if smaller is None else smaller,
        json=text,
        num_questions=len(questions),
    )
    return Packed(sample, tally(questions), mark)


def fingerprint(source: Source) -> str:
    """A line that changes when the source image does: id, file name, sha256 of the content."""
    return _fingerprint(source.image_id, _load(source))


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


def _load(source: Source) -> _File:
    path: Path | None = None
    try:
        path = find_image(source.directory, source.image_ref, source.endings)
        return _File(path, read_image(path), None)
    except (MissingImage, UnreadableImage) as error:
        return _File(path, b"", error)


def _fingerprint(image_id: str, file: _File) -> str:
    return f"{image_id}\0{file.path.name if file.path else ''}\0{hashlib.sha256(file.data).hexdigest()}\n"


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
