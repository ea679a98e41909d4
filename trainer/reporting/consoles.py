"""Where the log lines of a rank are shown: what happens on stdout, and errors on stderr, where `2>` finds them."""

import logging
import os
import sys
from contextlib import suppress

from tqdm import tqdm

from trainer.reporting.progress import ConsoleHandler


class ErrorHandler(ConsoleHandler):
    """Errors on stderr, through a stream of its own: a bar takes over the handlers of sys.stdout and sys.stderr, and
    would show errors on its own stream. A bar is cleared for the line and drawn again below it."""

    def __init__(self) -> None:
        super().__init__(_another(sys.stderr))
        self.setLevel(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError), tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def console_handlers(rank: int) -> list[logging.Handler]:
    """What rank 0 has to say, and the errors of every rank."""
    errors = ErrorHandler()
    handlers: list[logging.Handler] = [errors]
    if rank == 0:
        news = ConsoleHandler()
        news.setLevel(logging.INFO)
        news.addFilter(lambda record: record.levelno < logging.ERROR)
        handlers.append(news)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handlers


def _another(stream):
    """A stream of its own on the same file; the same one where it is no file."""
    try:
        return os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    except (AttributeError, OSError, ValueError):
        return stream
