"""Recipes of runs over hosts, and waiting for what a run shows on its way."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

from tests.multinode.lab import POLL_SECONDS
from tests.multinode.ranks import END_SECONDS, Start
from tests.runs import LeftOver, write_recipe, write_shards

TIMEOUT_SECONDS = 20
"""engine.timeout_seconds of every run here."""
START_SECONDS = 20
"""Their engine.start_timeout_seconds."""
ENGINE = {"timeout_seconds": TIMEOUT_SECONDS, "start_timeout_seconds": START_SECONDS, "heartbeat_seconds": 1.0}
LATENESS = 10.0
"""What a promised time may be exceeded by: the issue of a lost host ends within the timeout and so many seconds."""
SLACK = 30.0
"""On top, for a machine on which other things run."""
ENDLESS = ("limits.epochs=100000", "validate_every.epochs=100000")
"""A run that only a test ends."""


@dataclasses.dataclass(frozen=True)
class Project:
    """A directory with shards of two splits and a recipe over them."""

    directory: Path
    recipe: Path
    data: Mapping[str, str]

    @classmethod
    def write(cls, directory: Path, **sections: object) -> "Project":
        data = write_shards(directory)
        sections.setdefault("engine", ENGINE)
        return cls(directory, write_recipe(directory / "tiny.yaml", data, **sections), data)

    def run(self, name: str) -> "Run":
        return Run(self.directory / "runs" / name)


class Run(LeftOver):
    """A run on its way."""

    def wait_for_step(self, step: int, seconds: float = END_SECONDS) -> None:
        """Until the losses of this step are recorded. A run that has failed or is done has no more of them."""
        deadline = time.monotonic() + seconds
        while step > self.last_step:
            status = self.directory.read_status()
            assert status is None or status.state in ("running", "stopped"), status
            assert time.monotonic() < deadline, f"{self.path}: step {step} did not come within {seconds:.0f} s"
            time.sleep(POLL_SECONDS)

    @property
    def last_step(self) -> int:
        """The last one whose losses are recorded; 0 before the first."""
        if not self.directory.metrics.exists():
            return 0
        *lines, _ = self.directory.metrics.read_text().split("\n")  # behind the last line's end, or half a line
        return max((json.loads(line)["step"] for line in lines), default=0)


def assert_same_bits(run: Run, expected: Run) -> None:
    """A finished run has the losses, metrics, predictions and weights of another, bit for bit."""
    assert run.status["state"] == "done"
    assert run.records == expected.records
    assert run.predictions == expected.predictions
    for pointer in ("last", "best"):
        assert run.bits(pointer) == expected.bits(pointer)
        assert run.progress(pointer) == expected.progress(pointer)


def assert_one_line_each(start: Start) -> None:
    """Every rank says why it leaves, in one line and without a traceback."""
    for rank in start.ranks:
        assert len(rank.said.strip().splitlines()) == 1, start.said
