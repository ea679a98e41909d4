"""A small Ray cluster on this machine, of processes of its own, for the tests of a build on one."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

ROOT = Path(__file__).parents[4]
STORE_BYTES = 80_000_000
START_SECONDS = 300
_MARK = "DUOFLOW_TEST_NODE"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class RayCluster:
    """Nodes started with `ray start`; only who knows their token can talk to them, and they report nothing to anybody.

    A context manager: at its end every process of every node is gone, however far it came.
    """

    def __init__(self, directory: Path) -> None:
        self._port = free_port()
        self._directory = directory
        self._sessions = Path(
            tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        )  # a socket's path is short, pytest's are long
        self._marks: dict[subprocess.Popen, str] = {}
        """Of each node: what stands in the environment of its processes."""
        self.address = f"127.0.0.1:{self._port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",
            "RAY_raylet_start_wait_time_s": str(START_SECONDS),
        }

    def __enter__(self) -> Self:
        try:
            options = [f"--ray-client-server-port={free_port()}", "--include-dashboard=false", "--no-monitor"]
            self._start(["--head", f"--port={self._port}", *options, f"--temp-dir={self._sessions}"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self._marks)[::-1]:
            self.stop(node)
        shutil.rmtree(self._sessions)

    def add_node(self, name: str, *, before: Sequence[str] = (), **environment: str) -> subprocess.Popen:
        """Start another node: behind a command that runs what it is given, and with more in its environment."""
        return self._start([f"--address={self.address}", f"--node-name={name}"], before, environment)

    def processes(self, node: subprocess.Popen) -> list[psutil.Process]:
        """All that a node started; its workers hide their environment, and are children of what does not."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._marks[node]:
                    found += [process, *process.children(recursive=True)]
        return found

    def stop(self, node: subprocess.Popen) -> None:
        """End a node at once, with every process that it started."""
        processes = self.processes(node)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        psutil.wait_procs(processes, timeout=START_SECONDS)
        del self._marks[node]

    def _start(
        self, options: list[str], before: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> subprocess.Popen:
        mark = secrets.token_hex(8)
        log = self._directory / f"node-{mark}.log"
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
        more = [f"--object-store-memory={STORE_BYTES}", f"--dashboard-agent-listen-port={free_port()}"]
        more.append("--include-log-monitor=false")
        with log.open("w") as file:
            node = subprocess.Popen(
                [*before, *map(str, command), *more, *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**self.environment, _MARK: mark, **(environment or {})},
                cwd=self._directory,
                start_new_session=True,
            )
        self._marks[node] = mark
        end = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        return node
