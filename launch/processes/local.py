"""Runs the deepspeed launcher on this machine, passes one signal on, and waits until the ranks are gone.

The launcher needs an attendant (seen with deepspeed 0.19.8). Sent a signal, it ends before its ranks have saved, or
leaves them behind; it signals them one after the other and, with each, its data workers; over several hosts it ends
other runs as well (`pkill -f`). So it gets a session of its own, where no Ctrl-C reaches it, and a stop is passed to
the ranks themselves: they agree, save and leave, and the launcher ends by itself.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Protocol, Self

from launch.plan.launch_plan import LaunchPlan, Node, local_argv
from launch.processes.memory import counted_since, memory_group, oom_kills
from launch.processes.ranks import forget_ranks, live_ranks, recorded_ranks, send

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 5.0
"""Signals within this time of the first are the same request; a SIGINT after it is impatience."""
POLL_SECONDS = 0.1
POLL_HOSTS_SECONDS = 2.0
"""Between two looks at ranks on other hosts, each a round of ssh."""

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
    left: tuple[str, ...] = ()
    """Other hosts on which ranks go on without their launcher."""
    want_of_memory: str | None = None
    """What the control group of this process says, if the kernel has ended somebody in it for that."""


class Elsewhere(Protocol):
    """The other hosts of a run. Those that cannot be reached are passed over: their ranks notice by themselves."""

    def stop(self) -> bool:
        """Ask ranks to save and leave; False where none is up yet."""
        ...

    def end(self) -> None:
        """End a start whose ranks are not up."""
        ...

    def kill(self) -> None:
        """End every process of the run at once."""
        ...

    def live(self) -> tuple[str, ...]:
        """Hosts with ranks that run."""
        ...


def count_gpus(environment: Mapping[str, str]) -> int:
    """GPUs that torch sees under these environment variables. Without a GPU driver, torch is not even asked."""
    if environment.get("DS_ACCELERATOR") == "cpu" or not any(os.path.exists(path) for path in _GPU_FILES):
        return 0
    command = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return int(answer.stdout) if answer.returncode == 0 else 0


def launcher_command(
    module: str, arguments: Sequence[str], *, python: str, processes: int, port: int, gpus: Sequence[str] = ()
) -> list[str]:
    """The command that starts `processes` ranks of a module: the plan of one node.

    Args:
        gpus: numbers of the GPUs to use, one per rank; empty takes the first ones, or none on a CPU. The launcher sets
            CUDA_VISIBLE_DEVICES anew, so what the user has chosen there has to come in here.
    """
    here = Node("localhost", processes, tuple(gpus))
    address = "127.0.0.1"
    return local_argv(
        LaunchPlan(nodes=(here,), address=address, port=port, module=module, arguments=tuple(arguments), python=python)
    )


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
    elsewhere: Elsewhere | None = None,
) -> Outcome:
    """Run the launcher to its end, and its ranks to theirs. Call it in the main thread.

    SIGINT, SIGTERM, SIGHUP or SIGUSR1 makes the ranks stop and save; a Ctrl-C well after that kills them. If the
    launcher dies before its ranks, those of this machine are asked to save and leave; those of other hosts go on, for
    they may be worth more than their launcher, and `Outcome.left` names the hosts.

    Args:
        ranks: directory in which every rank calls `record_rank`; records of an earlier start are removed.
        processes: number of ranks on this machine, if it has any.
        leave_seconds: how long ranks may outlive the launcher before they are killed.
        say: shows a line to the user.
        elsewhere: the hosts of the run, where it has more than this one.
    """
    forget_ranks(ranks)
    with _Signals() as signals:
        launch = _Launch(command, environment, ranks, processes, elsewhere)
        while not launch.has_returned():
            _obey(signals, launch, say)
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + leave_seconds
        while launch.waits_for_ranks():
            _obey(signals, launch, say)
            if time.monotonic() > deadline and not launch.killed:
                say(f"ranks did not leave within {leave_seconds:g} s of the launcher: killing them")
                launch.kill()
            time.sleep(POLL_SECONDS if elsewhere is None else POLL_HOSTS_SECONDS)
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

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        ranks: Path,
        processes: int,
        elsewhere: Elsewhere | None,
    ) -> None:
        self._memory = memory_group()
        self._kills = None if self._memory is None else oom_kills(self._memory)
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        self._ranks, self._processes, self._elsewhere = ranks, processes, elsewhere
        self.stopping = self.stopped_early = self.killed = False

    def has_returned(self) -> bool:
        """Whether the launcher has ended. It is not yet collected: so its process group cannot become another's."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self) -> None:
        """Ask the ranks, once, to save and leave; while they are still starting, end everything.

        Ranks agree on a stop, so those of this machine are enough where it has any: on a shared disk the records of
        other hosts lie beside theirs.
        """
        if self.stopping:
            return
        self.stopping = True
        here = live_ranks(self._ranks)
        if here and recorded_ranks(self._ranks) >= self._processes:
            send(signal.SIGTERM, here)
        elif self._elsewhere is None:
            self.stopped_early = True
            self._signal_session(signal.SIGTERM)
        elif not self._elsewhere.stop():
            self.stopped_early = True
            # Not SIGTERM, at which the runner calls `pkill -f` on every host. First this, so that pdsh starts no more.
            self._signal_session(signal.SIGKILL)
            self._elsewhere.end()

    def kill(self) -> None:
        """End everything at once."""
        self.stopping = self.killed = True
        self._signal_session(signal.SIGKILL)
        if self._elsewhere is not None:
            self._elsewhere.kill()

    def waits_for_ranks(self) -> bool:
        """After the launcher's end: whether there are ranks that have to leave still."""
        if self._elsewhere is not None:
            return self.stopping and not self.killed and bool(live_ranks(self._ranks) or self._elsewhere.live())
        if live_ranks(self._ranks):
            self.stop()
            return True
        return False

    def finish(self) -> Outcome:
        """Clear away what the ranks left behind (data workers), and collect the launcher."""
        self._signal_session(signal.SIGKILL)
        left = () if self._elsewhere is None or self.stopping else self._elsewhere.live()
        memory = None if self._memory is None else counted_since(self._memory, self._kills)
        return Outcome(self._process.wait(), self.stopped_early, self.killed, left, memory)

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
