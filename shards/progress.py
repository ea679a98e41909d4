"""What is being done, and how far it is: on a terminal a line that goes when it is over, elsewhere a plain line now and
then; a closed output ends neither."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TextIO

SECONDS_BETWEEN_LINES = 10.0
_bars: list[Any] = []
"""What is shown on the terminal now."""


def say(text: str, *, error: bool = False) -> None:
    """Print a line to stdout (or stderr); if nobody reads it any more, go on in silence."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    for bar in _bars:
        bar.clear()  # else the text would stand behind it
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        silence(stream)


def silence(stream: TextIO | None) -> None:
    """Send a stream that nobody reads any more to nowhere: else Python fails once more when it flushes at exit.

    A stream that is None, closed or no file stays as it is.
    """
    if stream is None:
        return
    with suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def progress_line(what: str, done: int, total: int, unit: str, seconds: float) -> str:
    """`packing: 1,200 / 72,140 images, 95 images/s, 12:27 left`."""
    rate = done / seconds if seconds > 0 else 0.0
    if done >= total:
        left = f"done in {_clock(seconds)}"
    else:
        left = f"{_clock((total - done) / rate)} left" if rate else "time left unknown"
    return f"{what}: {done:,} / {total:,} {unit}, {rate:,.0f} {unit}/s, {left}"


class Progress:
    """Progress of one stage; a context manager."""

    def __init__(
        self, what: str, total: int, unit: str, *, show: bool = True, clock: Callable[[], float] = time.monotonic
    ):
        """
        Args:
            what: name of the stage.
            total: amount of work, in `unit`.
            unit: images, bytes, ...
            show: False keeps silent.
            clock: seconds.
        """
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._done = 0
        self._start = self._last_line = clock()
        self._show = show
        self._bar: Any = None
        if show and _is_terminal(sys.stderr):
            from tqdm import tqdm  # only a terminal needs it

            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, leave=False, file=sys.stderr)
            _bars.append(self._bar)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            _bars.remove(self._bar)
            self._bar.close()
        elif self._last_line > self._start and kind is None:
            self._line()

    def advance(self, amount: int = 1) -> None:
        """Count work as done."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif self._show and self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last_line = self._clock()
        seconds = self._last_line - self._start
        say(progress_line(self._what, self._done, self._total, self._unit, seconds), error=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show what takes a moment until it is over, to whoever sits before a terminal: nothing of it is in any log."""
    if not _is_terminal(sys.stderr):
        yield
        return

    from tqdm import tqdm  # only a terminal needs it

    with tqdm(bar_format="{desc} ...", desc=what, leave=False, file=sys.stderr) as bar:
        _bars.append(bar)
        try:
            yield
        finally:
            _bars.remove(bar)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
