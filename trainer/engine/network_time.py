"""How long an engine's collectives take: those that it waits for, by the clock of a CPU or the events of a GPU."""

import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)
"""Methods of DeepSpeed's communication backend."""


class Clock(Protocol):
    """Times what runs between `begin` and `end`, and adds it up."""

    def begin(self) -> Any: ...

    def end(self, begun: Any) -> None: ...

    def take(self) -> float:
        """Seconds since it was asked last."""
        ...


class HostClock:
    """Where collectives return when they are done."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._seconds = clock, 0.0

    def begin(self) -> float:
        return self._clock()

    def end(self, begun: float) -> None:
        self._seconds += self._clock() - begun

    def take(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class EventClock:
    """Events of a GPU's stream, read when their work is done: nobody waits for them.

    A collective on a stream of its own hides behind the computation; what of it cannot hide shows as computing, since
    only the computing stream is looked at.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pairs = device, []

    def begin(self) -> Any:
        if torch.cuda.current_stream(self._device) != torch.cuda.default_stream(self._device):
            return None
        return self._recorded()

    def end(self, begun: Any) -> None:
        if begun is not None:
            self._pairs.append((begun, self._recorded()))

    def take(self) -> float:
        done = [pair for pair in self._pairs if pair[1].query()]
        self._pairs = self._pairs[len(done) :]
        return sum(begun.elapsed_time(ended) for begun, ended in done) / 1000

    def _recorded(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class _TimedWork:
    """A collective that is under way: what is waited for it counts."""

    def __init__(self, work: Any, clock: Clock) -> None:
        self._work, self._clock = work, clock

    def wait(self, *arguments: Any) -> Any:
        begun = self._clock.begin()
        try:
            return self._work.wait(*arguments)
        finally:
            self._clock.end(begun)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def time_collectives(backend: Any, clock: Clock) -> None:
    """Have the collectives of a backend timed from now on; the backend is this object, and no other is touched."""
    for name in COLLECTIVES:
        method = getattr(backend, name, None)
        if method is not None:
            setattr(backend, name, _timed(method, clock))


def _timed(method: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    method = getattr(method, "__wrapped_untimed__", method)

    @functools.wraps(method)
    def timed(*arguments: Any, **named: Any) -> Any:
        begun = clock.begin()
        try:
            work = method(*arguments, **named)
        finally:
            clock.end(begun)
        return work if work is None or not hasattr(work, "wait") else _TimedWork(work, clock)

    timed.__wrapped_untimed__ = method
    return timed
