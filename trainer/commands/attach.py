"""`duoflow attach`: shows what a run says until it ends; adopts ranks whose starter was killed."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.hosts.watch import Census, take_census
from launch.processes.ranks import attending, read_attendant, this_process
from shards.errors import UserError
from shards.progress import say, silence
from trainer.commands.standing import exit_code, find_run, judge, say_end, settle, settle_dead
from trainer.run_directory import RunDirectory, Status

EXIT_DETACHED = 130
"""What a shell reports after Ctrl-C: the run has not ended, so none of its own codes is true."""
POLL_SECONDS = 0.3
OTHER_HOSTS_SECONDS = 10.0
"""Between two looks at other hosts."""
SHOWN_LINES = 20
"""Of what was said before."""
_LETS_GO = (signal.SIGTERM, signal.SIGHUP)


class _LetGo(Exception):
    """Whoever watches wants to go; the run is not touched."""


def attach(path: Path) -> int:
    """Follow a run to its end; returns its exit code, or 130 if the user lets go of it.

    Raises:
        UserError: there is no such run.
    """
    run = find_run(path)
    census = take_census(run.ranks)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_signals_let_go())
            adopted = _adopt(run, census, stack)
            status = _follow(run, adopted=adopted)
        except (KeyboardInterrupt, _LetGo):
            say(f"duoflow: let go of {run.path}, which goes on; `duoflow stop {run.path}` ends it", error=True)
            return EXIT_DETACHED
    say(say_end(run, status))
    return exit_code(status)


def log_of(run: RunDirectory) -> Path:
    """Where a run's words can be read: the console of its attendant, or else what rank 0 writes for itself."""
    attendant = read_attendant(run.ranks)
    if attendant is not None and attendant.log is not None:
        return run.path / attendant.log
    return run.rank_log(0)


class Tail:
    """What is added to a file, also when it is made later; what was there before is cut to its last lines."""

    def __init__(self, path: Path, lines: int) -> None:
        self._path, self._lines = path, lines
        self._offset: int | None = None

    def read(self) -> bytes:
        """What is new."""
        try:
            with self._path.open("rb") as file:
                if self._offset is None:
                    new = b"".join(file.read().splitlines(keepends=True)[-self._lines :])
                else:
                    file.seek(self._offset)
                    new = file.read()
                self._offset = file.tell()
                return new
        except FileNotFoundError:
            return b""


def _adopt(run: RunDirectory, census: Census, stack: contextlib.ExitStack) -> bool:
    """Become the attendant of ranks that have lost theirs, if nobody else has; then other starts are kept out."""
    attendant = read_attendant(run.ranks)
    if not census.has_orphans or attendant is None:
        return False
    try:
        stack.enter_context(run.lock(adopt=True))
    except UserError:
        return False
    stack.enter_context(attending(run.ranks, attendant.log))
    lost = attendant.process
    say(
        f"duoflow: {run.path}: process {lost.pid} on {lost.host}, which started {len(census.live_ranks)} rank(s), is "
        "gone; this process takes its place until they end",
        error=True,
    )
    return True


def _follow(run: RunDirectory, *, adopted: bool) -> Status:
    """Show what is said until nothing is alive any more; how the run ended."""
    tail, own = Tail(log_of(run), SHOWN_LINES), this_process()
    next_look = time.monotonic()
    while True:
        ended = None
        here = take_census(run.ranks, ask_others=False).without(own)
        if not here.alive and time.monotonic() >= next_look:
            ended = _end(run, take_census(run.ranks).without(own), adopted=adopted)
            next_look = time.monotonic() + OTHER_HOSTS_SECONDS
        # After the look: what was said until the end is then shown as well.
        _show(tail.read())
        if ended is not None:
            return ended
        time.sleep(POLL_SECONDS)


def _end(run: RunDirectory, census: Census, *, adopted: bool) -> Status | None:
    """How the run ended; None if it has not. What is unknown is not waited for where the status tells the end."""
    if census.alive:
        return None
    status = run.read_status()
    if judge(status, census) == "dead":
        status = settle(run) if adopted else settle_dead(run)
    return None if status is None or status.state == "running" else status


def _show(text: bytes) -> None:
    try:
        sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
    except (OSError, ValueError):
        silence(sys.stdout)


@contextlib.contextmanager
def _signals_let_go() -> Iterator[None]:
    def let_go(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _LetGo

    previous = {number: signal.signal(number, let_go) for number in _LETS_GO}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
