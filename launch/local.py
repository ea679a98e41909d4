"""Starts a run on this machine with the deepspeed launcher, passes one signal on, and waits until the ranks are gone.

The launcher needs an attendant (seen with deepspeed 0.19.8). Sent a signal, it ends before its ranks have saved, or
leaves them behind; it signals them one after the other and, with each, its data workers. So it gets a session of its
own, where no Ctrl-C reaches it, and a stop is passed to the ranks themselves: they agree, save and leave, and the
launcher ends by itself.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Self

from launch.ranks import forget_ranks, live_ranks, recorded_ranks, send

LAUNCHER = "deepspeed.launcher.runner"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 5.0
"""Signals within this time of the first are the same request; a SIGINT after it is impatience."""
POLL_SECONDS = 0.1

_GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""A machine without any of these (CUDA, ROCm, WSL) has no GPU that torch could use."""


class Outcome(NamedTuple):
    """How a launch ended."""

    returncode: int
    """What the launcher returned; negative for a signal."""
    stopped_early: bool
    """A signal came before all ranks were up, so they had nothing to save."""
    killed: bool
    """Ranks were killed: at a second Ctrl-C, or because they did not leave."""


def count_gpus(environment: Mapping[str, str]) -> int:
    """GPUs that torch sees under these environment variables. Without a GPU driver, torch is not even asked."""
    if environment.get("DS_ACCELERATOR") == "cpu" or not any(os.path.exists(path) for path in _GPU_FILES):
        return 0
    command = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return int(answer.stdout) if answer.returncode == 0 else 0


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def launcher_command(
    module: str, arguments: Sequence[str], *, python: str, processes: int, port: int, gpus: Sequence[str] = ()
) -> list[str]:
    """The command that starts `processes` ranks of a module.

    Args:
        gpus: numbers of the GPUs to use, one per rank; empty takes the first ones, or none on a CPU. With a number of
            processes the launcher would drop CUDA_VISIBLE_DEVICES, so that variable has to come in here.
    """
    assert not gpus or len(gpus) == processes, (gpus, processes)
    where = f"--include=localhost:{','.join(gpus)}" if gpus else f"--num_accelerators={processes}"
    # Without a host file of its own the launcher would look for /job/hostfile and might leave this machine.
    options = [f"--hostfile={os.devnull}", where, f"--master_port={port}", "--log_level=critical", "--module"]
    return [python, "-m", LAUNCHER, *options, module, *arguments]


def launcher_environment(
    environment: Mapping[str, str], *, processes: int, gpus: int, cores: int, import_from: Path | None
) -> dict[str, str]:
    """The environment of launcher and ranks. What the user has set stands.

    Args:
        gpus: GPUs of this machine; without any, DeepSpeed is told to use the CPU.
        cores: of this machine, shared evenly by the ranks.
        import_from: folder to import the project from, when it is not installed.
    """
    result = dict(environment)
    result.pop("CUDA_VISIBLE_DEVICES", None)
    if not result.get("OMP_NUM_THREADS"):  # an empty one is an error to OpenMP
        result["OMP_NUM_THREADS"] = str(max(1, cores // processes))
    result.setdefault("TOKENIZERS_PARALLELISM", "false")
    if gpus == 0:
        result.setdefault("DS_ACCELERATOR", "cpu")
    # `python -m` puts the working directory first, where a folder called `model` would hide the project's.
    result["PYTHONSAFEPATH"] = "1"
    if import_from is not None:
        result["PYTHONPATH"] = os.pathsep.join(filter(None, [str(import_from), environment.get("PYTHONPATH")]))
    return result


def run_launcher(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    ranks: Path,
    processes: int,
    leave_seconds: float,
    say: Callable[[str], None],
) -> Outcome:
    """Run the launcher to its end, and its ranks to theirs. Call it in the main thread.

    SIGINT, SIGTERM, SIGHUP or SIGUSR1 makes the ranks stop and save; a Ctrl-C well after that kills them.

    Args:
        ranks: directory in which every rank calls `record_rank`; records of an earlier start are removed.
        processes: number of ranks on this machine.
        leave_seconds: how long ranks may outlive the launcher before they are killed.
        say: shows a line to the user.
    """
    forget_ranks(ranks)
    with _Signals() as signals:
        launch = _Launch(command, environment, ranks, processes)
        while not launch.has_returned():
            _obey(signals, launch, say)
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + leave_seconds
        while live_ranks(ranks):
            launch.stop()
            _obey(signals, launch, say)
            if time.monotonic() > deadline and not launch.killed:
                say(f"ranks did not leave within {leave_seconds:g} s of the launcher: killing them")
                launch.kill()
            time.sleep(POLL_SECONDS)
        return launch.finish()


def wait_for_signal(seconds: float, is_stopped: Callable[[], bool]) -> str | None:
    """Sleep, unless a stop signal comes or `is_stopped` says so: then what stopped it. Call it in the main thread."""
    deadline = time.monotonic() + seconds
    with _Signals() as signals:
        while signals.first is None and time.monotonic() < deadline:
            if is_stopped():
                return "a request to stop"
            time.sleep(POLL_SECONDS)
        return signals.first


class _Launch:
    """A launcher in its own session, its ranks, and what was already done to them."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], ranks: Path, processes: int) -> None:
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        self._ranks, self._processes = ranks, processes
        self.stopping = self.stopped_early = self.killed = False

    def has_returned(self) -> bool:
        """Whether the launcher has ended. It is not yet collected: so its process group cannot become another's."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self) -> None:
        """Ask the ranks, once, to save and leave; while they are still starting, end everything."""
        if self.stopping:
            return
        self.stopping = True
        if recorded_ranks(self._ranks) == self._processes:
            send(signal.SIGTERM, live_ranks(self._ranks))
        else:
            self.stopped_early = True
            self._signal_session(signal.SIGTERM)

    def kill(self) -> None:
        """End everything at once."""
        self.stopping = self.killed = True
        self._signal_session(signal.SIGKILL)

    def finish(self) -> Outcome:
        """Clear away what the ranks left behind (data workers), and collect the launcher."""
        self._signal_session(signal.SIGKILL)
        return Outcome(self._process.wait(), self.stopped_early, self.killed)

    def _signal_session(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


def _obey(signals: "_Signals", launch: _Launch, say: Callable[[str], None]) -> None:
    if signals.insists and not launch.killed:
        say("interrupted again: killing the ranks; the last checkpoint stays")
        launch.kill()
    elif signals.first is not None and not launch.stopping:
        launch.stop()
        saving = "the ranks stop at the next step and save; Ctrl-C again in a few seconds kills them"
        say(f"{signals.first}: {'ending the start' if launch.stopped_early else saving}")


class _Signals:
    """While entered, stop signals are noted instead of ending this process. Those that were ignored stay ignored:
    `nohup` and shells' background jobs rely on it."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.insists = False
        self._first_time = 0.0
        self._previous: dict[signal.Signals, Callable | int | None] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.first is None:
            self.first, self._first_time = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first_time > SAME_REQUEST_SECONDS:
            self.insists = True
