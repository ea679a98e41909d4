"""Ranks and commands forked from a process that has imported the trainer already, in place of processes that import it.

A launcher and two ranks take some 30 s of processor time before the first test. So what ranks do is tested with
these; how they are started is tested through `launch_ranks`.
"""

import dataclasses
import functools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.atomic import write_atomically
from tests.distributed.launch import ROOT, free_port, outer_environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What the process that forks is asked for."""

    module: str
    arguments: list[str]
    environments: list[dict[str, str]]
    """Of each rank."""
    cwd: str
    directory: str
    """Where consoles, process ids and exit codes are left."""


class Forked:
    """Ranks that were started, each a process of its own."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        cwd: Path = ROOT,
    ) -> None:
        self._command = [module, *arguments]
        self._home = Path(tempfile.mkdtemp(prefix="ranks"))
        launch = Launch(
            module=module,
            arguments=list(arguments),
            environments=[dict(environment) for environment in environments],
            cwd=str(cwd),
            directory=str(self._home),
        )
        server = _server()
        assert server.stdin is not None
        server.stdin.write(json.dumps(dataclasses.asdict(launch)) + "\n")
        server.stdin.flush()

    @property
    def is_running(self) -> bool:
        """Whether a rank has not ended."""
        return not (self._home / "codes").exists()

    def send_signal(self, number: signal.Signals, rank: int = 0) -> None:
        """Send a signal to a rank."""
        os.kill(self._read("pids", time.monotonic() + 60)[1 + rank], number)

    def wait(self, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        """Until all ranks have ended: the first exit code that is not 0, else 0, and what all of them wrote, which is
        also printed if the code is not 0.

        Raises:
            TimeoutExpired: they have not; they are killed.
        """
        try:
            codes = self._read("codes", time.monotonic() + timeout_seconds)
        except BaseException:
            os.killpg(self._read("pids", time.monotonic() + 60)[0], signal.SIGKILL)
            print(self._written())
            raise
        code, output = next(filter(None, codes), 0), self._written()
        if code != 0:
            print(output)
        shutil.rmtree(self._home)
        return subprocess.CompletedProcess(self._command, code, output)

    def _written(self) -> str:
        return (self._home / "console").read_text(errors="replace")

    def _read(self, name: str, deadline: float) -> list[int]:
        """`pids`: of the process that waits for the ranks, whose group they are in, and of each rank; `codes`."""
        path = self._home / name
        while not path.exists():
            if time.monotonic() > deadline or _server().poll() is not None:
                raise subprocess.TimeoutExpired(self._command, deadline)
            time.sleep(0.02)
        return json.loads(path.read_text())


def fork_ranks(
    module: str,
    *args: str,
    processes: int = 2,
    env: Mapping[str, str] | None = None,
    timeout_seconds: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run a module, as `python -m` does, on so many gloo ranks of this machine; one of them alone belongs to no group.

    Args:
        module: dotted name, such as tests.distributed.engine_worker.
        env: additions to this process's environment.
        timeout_seconds: after it, everything that was started here is killed and TimeoutExpired raised.

    Returns:
        As `Forked.wait`.
    """
    common = outer_environment({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **(env or {})})
    environments = [common]
    if processes > 1:
        sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
        environments = [common | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return Forked(module, args, environments).wait(timeout_seconds)


def fork_command(words: Sequence[str], env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `duoflow WORDS` in a directory, with nothing else in its environment than `env`."""
    return Forked("trainer.cli", words, [env], cwd).wait(300.0)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """It ends with the process that started it, whose end of the pipe is closed then."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.forked_ranks"],
        cwd=ROOT,
        env=outer_environment({}),
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def main() -> None:
    """Fork for each line of stdin, a `Launch`, a process that forks its ranks and waits for them."""
    import trainer.training.rank  # noqa: F401 - what takes longest, once

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            _attend(Launch(**json.loads(line)))
            os._exit(0)


def _attend(launch: Launch) -> None:
    home = Path(launch.directory)
    with (home / "console").open("ab") as console, Path(os.devnull).open("rb") as nothing:
        for own, standard in ((nothing, 0), (console, 1), (console, 2)):
            os.dup2(own.fileno(), standard)
    ranks = [_fork(launch, environment) for environment in launch.environments]
    write_atomically(home / "pids", json.dumps([os.getpid(), *ranks]).encode())
    codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    write_atomically(home / "codes", json.dumps(codes).encode())


def _fork(launch: Launch, environment: Mapping[str, str]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(launch.cwd)
            sys.argv = [launch.module, *launch.arguments]
            runpy.run_module(launch.module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


if __name__ == "__main__":
    main()
