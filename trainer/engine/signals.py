"""Turns SIGTERM, SIGINT and SIGUSR1 into a request to stop that the training loop reads when it suits it."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Launchers and clouds send SIGTERM, a terminal SIGINT, and Slurm whatever `--signal` asks for, often SIGUSR1."""
SAME_REQUEST_SECONDS = 5.0
EXIT_INTERRUPTED = 130
"""What a shell reports for a process that SIGINT ended: 128 + 2."""


class StopRequest:
    """While entered, the first stop signal sets `requested`, and a SIGINT well after it ends the process at once.

    Signals within `same_request_seconds` of the first belong to it: one Ctrl-C reaches a rank as SIGINT from the
    terminal and again as SIGTERM from the launcher. Only another SIGINT is somebody's impatience; repeated SIGTERM and
    SIGUSR1 come from launchers that poll, and change nothing.

    The handler does no more than that. It runs between any two statements of the main thread, possibly inside a
    half-written checkpoint or with a broken stdout, so saving, printing and collectives are left to the loop. While
    the main thread waits in a collective, the handler waits as well.

    Args:
        same_request_seconds: see above.
        clock: seconds from any fixed point, never going back.
    """

    def __init__(
        self, *, same_request_seconds: float = SAME_REQUEST_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._same_request_seconds, self._clock = same_request_seconds, clock
        self._first: tuple[str, float] | None = None
        self._previous: dict[signal.Signals, Callable | int | None] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop. The ranks must agree on it before any of them acts on it."""
        return self._first is not None

    @property
    def reason(self) -> str | None:
        """The name of the first signal, as in SIGTERM; None without a request."""
        return None if self._first is None else self._first[0]

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread can."""
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = self._clock()
        if self._first is None:
            self._first = (signal.Signals(number).name, now)
        elif number == signal.SIGINT and now - self._first[1] > self._same_request_seconds:
            # An exception could be caught, or wait for threads and peers that hang; files survive, being renamed whole.
            os._exit(EXIT_INTERRUPTED)
