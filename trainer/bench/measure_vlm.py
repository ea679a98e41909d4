"""Measures a vision-language model's paths, each in a process of its own, in alternating rounds."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from shards.errors import UserError
from trainer.bench.rounds import Seconds, speedup, time_rounds
from trainer.bench.vlm_path import TRL
from trainer.bench.vlm_workload import VlmSizes

SHARED, ROWS, CONVERSATION = "shared", "rows", "conversation"
SAME_LOSS = 1e-4
"""Relative difference in fp32 above which a path computes something else; a conversation does by its nature."""
DESCRIPTIONS = {
    SHARED: "the image once, questions behind it",
    ROWS: "the image in front of every question, padded to the longest row",
    CONVERSATION: "one conversation: later questions see earlier ones (another objective)",
    TRL: "the rows in TRL's SFTTrainer",
}


@dataclass(frozen=True, kw_only=True)
class VlmMeasurement:
    """What was measured with one size of prefix, by path."""

    sizes: VlmSizes
    rounds: list[Seconds]
    losses: dict[str, float]
    peak_bytes: dict[str, int]
    """Of a step, above what was there before it."""
    writing: list[Seconds]
    same_answers: bool
    """Whether answers written together are those written one by one."""

    def times(self, slow: str) -> float:
        """How many times as fast the shared path is as another."""
        return speedup(self.rounds, SHARED, slow)

    @property
    def unequal(self) -> list[str]:
        """Paths with another loss than the rows."""
        plain = self.losses[ROWS]
        return [
            name
            for name, loss in self.losses.items()
            if name != CONVERSATION and abs(loss - plain) > SAME_LOSS * abs(plain)
        ]

    def as_json(self) -> dict[str, Any]:
        """The figures with what they depend on."""
        return {
            **asdict(self),
            "speedup": {name: self.times(name) for name in self.losses if name != SHARED},
            "writing_speedup": speedup(self.writing, SHARED, ROWS) if self.writing else None,
        }


class _Path:
    """A process that computes one path."""

    def __init__(self, name: str, sizes: VlmSizes, threads: int, device: str) -> None:
        given = [name, json.dumps(asdict(sizes)), str(threads), device]
        command = [sys.executable, "-m", "trainer.bench.vlm_path", *given]
        self.name, self._said = name, tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe could be full
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )

    def ask(self, request: str) -> Any:
        """What the process says to a request.

        Raises:
            UserError: it has ended.
        """
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._said.seek(0)
            said = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"bench vlm: path {self.name} ended: {said}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()


def measure_vlm(
    sizes: VlmSizes, names: Sequence[str], *, rounds: int, threads: int, device: str, report: Callable[[str], None]
) -> VlmMeasurement:
    """Measure paths one after the other, each round beginning with another one.

    Raises:
        UserError: a path cannot be computed here.
    """
    started: list[_Path] = []
    try:
        for name in names:
            started.append(_Path(name, sizes, threads, device))
        paths = {path.name: path for path in started}
        losses = {name: path.ask("loss") for name, path in paths.items()}  # a warm-up as well
        peaks = {name: path.ask("memory") for name, path in paths.items()}
        seconds = time_rounds(
            {name: lambda path=path: path.ask("step") for name, path in paths.items()}, rounds=rounds, progress=report
        )
        written = {name: paths[name].ask("write")["ids"] for name in (SHARED, ROWS) if name in paths}
        writing = time_rounds(
            {name: lambda name=name: paths[name].ask("write") for name in written}, rounds=rounds, progress=report
        )
    finally:
        for path in started:
            path.close()
    return VlmMeasurement(
        sizes=sizes,
        rounds=seconds,
        losses=losses,
        peak_bytes=peaks,
        writing=writing if len(written) > 1 else [],
        same_answers=len(written) < 2 or written[SHARED] == written[ROWS],
    )


def path_names(*, reference: bool) -> list[str]:
    """The paths that can be measured here."""
    if not reference:
        return [SHARED, ROWS]
    return [SHARED, ROWS, CONVERSATION, *([TRL] if find_spec("trl") is not None else [])]
