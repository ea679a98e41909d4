"""Waiting that has an end: for calls that only C++ or the network can finish, by a deadline, or until a stop signal."""

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

Made = TypeVar("Made")

POLL_SECONDS = 0.1


class Stop(Protocol):
    """What asks this process to stop: `trainer.engine.signals.StopRequest`."""

    @property
    def requested(self) -> bool: ...

    @property
    def reason(self) -> str | None: ...


class LostRankError(RuntimeError):
    """Another rank died, hangs or cannot be reached: nothing that this run's user wrote is wrong."""


class StoppedError(Exception):
    """A stop signal came while this process waited; its text is the signal's name."""


class LateError(Exception):
    """The deadline has passed; its text says what was waited for."""


def wait_for(
    act: Callable[[], Made],
    what: str,
    *,
    deadline: float,
    stop: Stop | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Made:
    """What `act` gives, or raises, if it comes to its end in time. Call it in the main thread.

    `act` runs in a thread of its own. Python hears no signal while the main thread is in C++, so that is never there.
    If it is given up, the thread stays behind: the process should end.

    Args:
        what: is waited for; the text of a LateError.
        deadline: by `time.monotonic`.
        interrupt: called at every look; what it raises ends the waiting.

    Raises:
        LateError, StoppedError: it is not done by the deadline, or when a signal comes.
    """
    results: list[Made] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:  # it is raised again, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name=f"waiting for {what}")
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if not thread.is_alive():
            break
        if stop is not None and stop.requested:
            raise StoppedError(stop.reason)
        if time.monotonic() > deadline:
            raise LateError(what)
        interrupt()
    if errors:
        raise errors[0]
    return results[0]


def first_line(error: BaseException) -> str:
    """What C++ says of a fault, without its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
