"""Starts a module on several gloo ranks through the `deepspeed` launcher, as a user would, and waits for it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch_ranks(
    module: str,
    *args: str,
    processes: int = 2,
    env: Mapping[str, str] | None = None,
    timeout_seconds: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run `deepspeed --module MODULE ARGS` on the CPU from the root of the project.

    Args:
        module: dotted name, such as tests.distributed.engine_worker; it is also given --local_rank=N.
        processes: number of ranks on this machine.
        env: additions to this process's environment.
        timeout_seconds: after it, everything that was started here is killed and TimeoutExpired raised.

    Returns:
        The launcher's exit code and what the launcher and all ranks wrote (stdout and stderr together, in `stdout`),
        which is also printed if the code is not 0.
    """
    command = [
        sys.executable,
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_accelerators",
        str(processes),
        "--master_port",
        str(free_port()),
        "--module",
        module,
        *args,
    ]
    return run(command, env=env, timeout_seconds=timeout_seconds)


def run(
    command: list[str], *, env: Mapping[str, str] | None, timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own, so that killing it touches nothing else."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=outer_environment(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        print(process.communicate()[0])
        raise
    if process.returncode != 0:
        print(output)
    return subprocess.CompletedProcess(command, process.returncode, output)


def outer_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """That of a process that belongs to no ranks yet, on the CPU."""
    outer = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    return {**outer, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **additions}


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
