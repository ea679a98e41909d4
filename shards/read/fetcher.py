"""A process beside each rank that fetches shards ahead of need; without it, workers fetch what they need themselves."""

import atexit
import multiprocessing
import os
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from ctypes import c_int64
from typing import NamedTuple

from shards.errors import DataError
from shards.format.index import Shard
from shards.read.ahead import Route, Window
from shards.read.workers import leave_with_parent, worker_context
from shards.remote.files import CachedFiles

CONNECTIONS = 4
"""Shards fetched at a time: one connection to an object store gives a part of what a node's link carries."""
POLL_SECONDS = 0.1
REST_SECONDS = 5.0
"""Until a shard is tried again for which there was no room, or that could not be fetched: who needs it says so."""


class Errand(NamedTuple):
    """What a process needs to know to fetch ahead."""

    files: CachedFiles
    shards: list[Shard]
    route: Route
    ahead: int


class Fetcher:
    """A process that keeps ahead of a route.

    It is told where the route is by a number in shared memory: a lock or a pipe could be held by a process that was
    killed, or be full, and a rank never waits for its fetcher.
    """

    def __init__(self, errand: Errand, modules: set[str]) -> None:
        context = worker_context(modules)
        self._position = context.RawValue(c_int64, 0)
        self._process = context.Process(target=_fetch_ahead, args=(errand, self._position), name="fetcher")
        self._process.start()
        weakref.finalize(self, _end, self._process).atexit = False
        # At exit Python would wait for its children before it ends what still refers to them.
        atexit.register(_end, self._process)

    @property
    def process_id(self) -> int | None:
        return self._process.pid

    def move_to(self, position: int) -> None:
        """Where the route is now."""
        self._position.value = position


def _end(process: multiprocessing.Process) -> None:
    process.kill()  # nothing of it is lost: what it has fetched of a shard is gone on with
    process.join()


def _fetch_ahead(errand: Errand, position: c_int64) -> None:
    leave_with_parent()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        ahead = _Ahead(errand, pool.submit)
        while True:
            ahead.move_to(position.value)
            time.sleep(POLL_SECONDS)


class _Ahead:
    """What is held, what is being fetched, and what comes next."""

    def __init__(self, errand: Errand, submit: Callable[..., Future[bool]]) -> None:
        self._errand, self._submit = errand, submit
        self._window = Window(errand.route, errand.ahead)
        self._held: dict[int, int] = {}
        """Shard -> the descriptor that announces it."""
        self._fetching: dict[int, Future[bool]] = {}
        self._rests: dict[int, float] = {}
        """Shard -> when to try again."""

    def move_to(self, position: int) -> None:
        """Begin to fetch what is needed next."""
        wanted = self._window.move_to(position)
        self._hold(wanted)
        self._collect()
        now = time.monotonic()
        for number in wanted:
            if len(self._fetching) == CONNECTIONS:
                break
            if number in self._fetching or self._rests.get(number, 0.0) > now:
                continue
            if not self._errand.files.has(self._errand.shards[number]):
                self._fetching[number] = self._submit(self._errand.files.prefetch, self._errand.shards[number])

    def _hold(self, wanted: list[int]) -> None:
        for number in self._held.keys() - set(wanted):
            os.close(self._held.pop(number))
        for number in wanted:
            if number not in self._held:
                self._held[number] = self._errand.files.hold(self._errand.shards[number])

    def _collect(self) -> None:
        for number in [number for number, future in self._fetching.items() if future.done()]:
            try:
                came = self._fetching.pop(number).result()
            except DataError:  # the worker that needs this shard meets the same fault, and says it
                came = False
            if not came:
                self._rests[number] = time.monotonic() + REST_SECONDS
