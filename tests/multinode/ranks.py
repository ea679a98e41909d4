"""Ranks that tests start by hand on hosts of a lab, and how they end."""

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.multinode.lab import ROOT, SYSTEM_PATH, Host

DONE, FAILED, MISTAKE, STOPPED, KILLED = 0, 1, 2, 75, -9
END_SECONDS = 300.0
"""For whatever should end by itself soon."""
LOGIN = {
    "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    # Nothing may need a compiler: DeepSpeed would build an operator for its CPU collectives.
    "CXX": "/nonexistent",
    "CC": "/nonexistent",
}
"""What somebody has set who trains on these hosts."""

_names = (f"rank{number:03}" for number in itertools.count())
_ports = itertools.count(20_000)


def next_port() -> int:
    """A port that no other start of this test run meets at."""
    return next(_ports)


class Warm:
    """A host on which ranks start without waiting for imports."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._server: subprocess.Popen | None = None
        self._is_up = False
        self._unread = b""
        self._ended: dict[str, tuple[int, float]] = {}

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request to the host's rank server, which starts with the first one, or after the host was off."""
        self.begin()
        self.wait_until_up()
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()

    def begin(self) -> None:
        """Start the rank server if it does not run, without waiting for it."""
        if self._server is not None and self._server.poll() is None:
            return
        piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-m", "tests.multinode.rank_server"]
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as a rank sets it before it imports torch
        self._server, self._is_up = self.host.popen(command, environment=LOGIN | quiet, **piped), False
        self._unread = b""

    def wait_until_up(self) -> None:
        """Until its imports are done."""
        while not self._is_up:
            self._read(END_SECONDS)

    def ended(self, name: str, seconds: float) -> tuple[int, float]:
        """Exit code of a rank, and when it ended by `time.monotonic`; negative for a signal.

        Raises:
            TimeoutError: it is still there.
        """
        deadline = time.monotonic() + seconds
        while name not in self._ended:
            self._read(deadline - time.monotonic())
        return self._ended[name]

    def _read(self, seconds: float) -> None:
        assert self._server is not None
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], max(0.0, seconds))[0]:
            raise TimeoutError(f"{self.host.name}: nothing within {seconds:.0f} s")
        received = os.read(self._server.stdout.fileno(), 1 << 16)
        assert received, f"{self.host.name}: its rank server is gone"
        *lines, self._unread = (self._unread + received).split(b"\n")
        for said in map(json.loads, lines):
            if "up" in said:
                self._is_up = True
            else:
                self._ended[said["name"]] = (said["code"], said["time"])


class Rank:
    """A rank that was started."""

    def __init__(self, warm: Warm, name: str, output: Path) -> None:
        self._warm, self._name, self._output = warm, name, output
        self.host = warm.host

    def code(self, seconds: float = END_SECONDS) -> int:
        """Its exit code, once it has ended; negative for a signal."""
        return self._warm.ended(self._name, seconds)[0]

    def end_time(self, seconds: float = END_SECONDS) -> float:
        """When it ended, by `time.monotonic`."""
        return self._warm.ended(self._name, seconds)[1]

    def signal(self, name: str) -> None:
        self._warm.ask({"signal": name, "name": self._name})

    @property
    def said(self) -> str:
        """What it wrote to its console."""
        return self._output.read_text() if self._output.exists() else ""


class Start:
    """The ranks of one start, in the order of their numbers."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.ranks = list(ranks)

    def codes(self, seconds: float = END_SECONDS) -> list[int]:
        deadline = time.monotonic() + seconds
        try:
            return [rank.code(deadline - time.monotonic()) for rank in self.ranks]
        except TimeoutError as late:
            raise AssertionError(f"{late}\n{self.said}") from late

    @property
    def said(self) -> str:
        return "".join(f"=== rank {number}\n{rank.said}" for number, rank in enumerate(self.ranks))

    def kill(self) -> None:
        """End what has not ended."""
        for rank in self.ranks:
            if rank.host.is_alive:
                with contextlib.suppress(AssertionError, BrokenPipeError):
                    rank.signal("SIGKILL")


class Crew:
    """Starts ranks by hand on hosts, as a user does who logs in on each, and ends what a test has left behind."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._warm: dict[str, Warm] = {}
        self._starts: list[Start] = []

    def prepare(self, hosts: Sequence[Host]) -> None:
        """Begin the imports on hosts, all at once."""
        for host in hosts:
            self._on(host).begin()

    def start(
        self,
        hosts: Sequence[Host],
        *arguments: str | Path,
        slots: int = 1,
        only: Sequence[int] | None = None,
        address: str | None = None,
        port: int | None = None,
        own: Mapping[int, Sequence[str | Path]] | None = None,
    ) -> Start:
        """Start ranks of `trainer.train`, numbered host by host.

        Args:
            arguments: recipe and overrides.
            only: numbers of the ranks that are started; None is all.
            address: of rank 0; None is the first host's name.
            port: None is one that no other start meets at.
            own: other arguments of single ranks.
        """
        self.wait_until_warm(hosts)
        where = {"MASTER_ADDR": address or hosts[0].name, "MASTER_PORT": str(port or next_port())}
        size = len(hosts) * slots
        ranks = []
        for number in range(size) if only is None else only:
            place = {"RANK": str(number), "LOCAL_RANK": str(number % slots), "WORLD_SIZE": str(size)}
            words = (own or {}).get(number, arguments)
            ranks.append(self.rank(hosts[number // slots], *words, environment=place | where))
        return Start(ranks)

    def wait_until_warm(self, hosts: Sequence[Host]) -> None:
        """Until ranks start on all of these hosts at once."""
        for host in hosts:
            self._on(host).begin()
        for host in hosts:
            self._on(host).wait_until_up()

    def rank(self, host: Host, *arguments: str | Path, environment: Mapping[str, str]) -> Rank:
        """Start one process."""
        name = next(_names)
        output = self._directory / f"{name}.{host.name}.txt"
        warm = self._on(host)
        warm.ask(
            {
                "name": name,
                "arguments": list(map(str, arguments)),
                "environment": dict(environment),
                "directory": str(self._directory),
                "output": str(output),
            }
        )
        rank = Rank(warm, name, output)
        self._starts.append(Start([rank]))
        return rank

    def kill(self) -> None:
        """End every rank that has not ended by itself."""
        for start in self._starts:
            start.kill()
        self._starts.clear()

    def _on(self, host: Host) -> Warm:
        known = self._warm.get(host.name)
        if known is None or known.host is not host:
            known = self._warm[host.name] = Warm(host)
        return known
