"""How a rank ends: the line that it says, the code that it returns, and what it leaves in status.json."""

import contextlib
import logging
import sys
from pathlib import Path

from shards.errors import UserError
from trainer.run_directory import RunDirectory, State

logger = logging.getLogger(__name__)

ENDED: tuple[State, ...] = ("failed", "stopped", "done")


def say(message: object) -> None:
    """One line for the user, where this rank's log is or else on stderr."""
    logger.error("%s", message) if logging.getLogger().handlers else print(f"duoflow: {message}", file=sys.stderr)


def leave_status(directory: RunDirectory, state: State, code: int, message: str, *, ours: bool, since: float) -> None:
    """Say in status.json how this start ended, unless another rank has said it: the first one knows why.

    Args:
        ours: the directory is this start's. Else nothing is written where another run trains.
        since: when this start began, in seconds since 1970.
    """
    try:
        with contextlib.nullcontext() if ours else _occupied(directory):
            status = directory.read_status()
            if status is None or status.state not in ENDED or _written(directory.status) < since:
                directory.change_status(state, exit_code=code, message=message)
    except (OSError, UserError) as error:
        logger.debug("%s: not written (%s)", directory.status, error)


@contextlib.contextmanager
def _occupied(directory: RunDirectory):
    directory.create()
    with directory.lock():
        yield


def _written(path: Path) -> float:
    return path.stat().st_mtime
