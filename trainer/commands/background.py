"""Goes on without the terminal: the same process once more, in a session of its own, with its output in a file."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from shards.errors import UserError


def go_on_in_background(log: Path, work: Callable[[Callable[[], None]], int]) -> int:
    """Do `work` in a process that no terminal reaches, and that this one's end does not touch.

    Args:
        log: file behind which stdout and stderr of that process, and of all that it starts, are written.
        work: gets a function to call when others can find it, and returns the exit code.

    Returns:
        The process id, once `work` has called that function.

    Raises:
        UserError: it ended before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    between = os.fork()
    if between == 0:
        os.close(reader)
        _leave_terminal(output, writer, work)
    os.close(output)
    os.close(writer)
    os.waitpid(between, 0)
    with os.fdopen(reader) as ready:
        pid = ready.read()
    if not pid:
        raise UserError(f"the run ended as soon as it was alone; {log} has its last words")
    return int(pid)


def _leave_terminal(output: int, writer: int, work: Callable[[Callable[[], None]], int]) -> None:
    """In the forked process: fork once more, so that nobody has to wait for the one that works."""
    code = 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for stream, target in ((0, nowhere), (1, output), (2, output)):
            os.dup2(stream if target == stream else target, stream)

        def ready() -> None:
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)

        code = work(ready)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not up the stack: what is above belongs to the process that has said goodbye to the user.
        os._exit(code)
