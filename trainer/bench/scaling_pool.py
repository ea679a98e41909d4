"""Ranks of `duoflow bench scaling` from outside: started on their hosts, given jobs, heard, and ended."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

from launch.network import free_port
from launch.processes.local import launcher_environment
from trainer.bench.namespaces import INTERFACE, Host
from trainer.bench.scaling_job import Answer, Job, Probe
from trainer.config.schema import REPOSITORY

RANK_MODULE = "trainer.bench.scaling_rank"
_PORT = 29500
"""In a network namespace every port is free."""
START_SECONDS, JOB_SECONDS = 300.0, 600.0


class RankEndedError(Exception):
    """A rank ended, or did not answer; the message has the last line that it wrote."""


class Pool:
    """Ranks that wait for jobs."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[IO[bytes]]) -> None:
        self._processes, self._logs = processes, logs
        self._rests = [b""] * len(processes)

    def run(self, job: Job) -> list[Answer]:
        """What each rank measured, by rank.

        Raises:
            RankEndedError: a rank failed.
        """
        return [Answer(**answer) for answer in self._ask(job)]

    def probe(self, probe: Probe) -> list[float]:
        """Seconds of each collective, until all ranks were through.

        Raises:
            RankEndedError: a rank failed.
        """
        return self._ask(probe)[0]

    def _ask(self, job: Job | Probe) -> list[Any]:
        line = json.dumps(asdict(job)).encode() + b"\n"
        for rank, process in enumerate(self._processes):
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                raise self._fault(rank, "ended") from None
        return self.hear(JOB_SECONDS)

    def hear(self, seconds: float) -> list[Any]:
        """One line of JSON from each rank."""
        deadline = time.monotonic() + seconds
        return [json.loads(self._line(rank, deadline)) for rank in range(len(self._processes))]

    def _line(self, rank: int, deadline: float) -> bytes:
        output = self._processes[rank].stdout
        assert output is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while b"\n" not in self._rests[rank]:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._fault(rank, "did not answer in time")
                read = os.read(output.fileno(), 65536)
                if not read:
                    raise self._fault(rank, "ended")
                self._rests[rank] += read
        line, _, self._rests[rank] = self._rests[rank].partition(b"\n")
        return line

    def _fault(self, rank: int, what: str) -> RankEndedError:
        log = self._logs[rank]
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        return RankEndedError(f"rank {rank} {what}: {lines[-1]}")


@contextlib.contextmanager
def pool(places: Sequence[Host | None], *, ranks_per_host: int) -> Iterator[Pool]:
    """Ranks on each of some hosts, all of which have met; gone afterwards. None is this machine itself.

    Raises:
        RankEndedError: a rank could not start.
    """
    first = places[0]
    meeting = {
        "WORLD_SIZE": str(len(places) * ranks_per_host),
        "MASTER_ADDR": "127.0.0.1" if first is None else first.address,
        "MASTER_PORT": str(free_port() if first is None else _PORT),
    }
    environment = launcher_environment(
        {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        processes=len(places) * ranks_per_host,
        gpus=0,
        cores=len(os.sched_getaffinity(0)),
        import_from=REPOSITORY,
    )
    with contextlib.ExitStack() as stack:
        processes, logs = [], []
        for rank in range(len(places) * ranks_per_host):
            place = places[rank // ranks_per_host]
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank % ranks_per_host)}
            if place is not None:
                own["GLOO_SOCKET_IFNAME"] = INTERFACE
            logs.append(stack.enter_context(tempfile.TemporaryFile()))
            command = [*([] if place is None else place.inside), sys.executable, "-m", RANK_MODULE]
            process = subprocess.Popen(
                command,
                env=environment | meeting | own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=logs[-1],
                start_new_session=True,  # a Ctrl-C is for this process, which ends them
            )
            stack.callback(_end, process)
            processes.append(process)
        ranks = Pool(processes, logs)
        ranks.hear(START_SECONDS)
        yield ranks


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()
