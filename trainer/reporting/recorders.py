"""Where metrics and pictures go: what a recorder takes, and metrics.jsonl. A resume forgets what was rolled back."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from shards.atomic import write_atomically
from trainer.scoring.matching_curve import PrecisionRecall

logger = logging.getLogger(__name__)

Scalar = str | int | float | bool
"""A value of a recipe that a table of runs can show."""


class Recorder:
    """Takes what a run measures; each kind keeps what it has a place for. Only rank 0 has one that writes; the others
    use `Recorders([])`."""

    def introduce(self, settings: Mapping[str, Scalar], accuracies: Sequence[str]) -> None:
        """Keep what tells this run from others: what its recipe sets, by dotted key, and the names of the metrics in
        which runs are compared, the first of them first."""

    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        """Keep the metrics of a global step (the number of optimizer steps taken), by name ("val/accuracy"): numbers,
        and here and there a word."""

    def best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of the best validation so far, whose weights are exported."""

    def text(self, name: str, text: str) -> None:
        """Keep a text that belongs to the run as a whole, such as its resolved recipe."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep a picture of a global step."""

    def precision_recall(self, step: int, name: str, curve: PrecisionRecall) -> None:
        """Keep a curve of a global step."""

    def close(self) -> None:
        """Finish writing."""


class Recorders(Recorder):
    """Hands everything to each of its recorders; without any, it does nothing.

    A recorder that cannot write (a full disk) is named in a warning and training goes on: metrics are not worth a run.
    """

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)
        self._failing: set[int] = set()

    def introduce(self, settings: Mapping[str, Scalar], accuracies: Sequence[str]) -> None:
        self._each(lambda recorder: recorder.introduce(settings, accuracies))

    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        self._each(lambda recorder: recorder.record(step, values))

    def best(self, step: int, metrics: Mapping[str, float]) -> None:
        self._each(lambda recorder: recorder.best(step, metrics))

    def text(self, name: str, text: str) -> None:
        self._each(lambda recorder: recorder.text(name, text))

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._each(lambda recorder: recorder.picture(step, name, image))

    def precision_recall(self, step: int, name: str, curve: PrecisionRecall) -> None:
        self._each(lambda recorder: recorder.precision_recall(step, name, curve))

    def close(self) -> None:
        self._each(lambda recorder: recorder.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, write: Callable[[Recorder], None]) -> None:
        for number, recorder in enumerate(self._recorders):
            try:
                write(recorder)
            except OSError as error:
                # Once per series of failures: a full disk would otherwise fill the log as well.
                if number not in self._failing:
                    name = type(recorder).__name__
                    logger.warning("%s cannot write (%s); training goes on, these metrics are lost", name, error)
                self._failing.add(number)
            else:
                self._failing.discard(number)


class JsonlRecorder(Recorder):
    """One JSON object per record: {"step": 10, "time": <seconds since 1970>, "train/loss": 0.5, ...}.

    NaN and infinities, which JSON does not have, become null. A record reaches the operating system before `record`
    returns, so a killed process loses none. Texts are left out: the run directory has the recipe as a file.

    Args:
        path: the file, made if it is not there.
        resumed_step: keep the records up to this step; None starts the file anew.
        clock: seconds since 1970.
    """

    def __init__(
        self, path: Path | str, *, resumed_step: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._path, self._clock = Path(path), clock
        kept = [] if resumed_step is None else _lines_up_to(self._path, resumed_step)
        write_atomically(self._path, b"".join(line + b"\n" for line in kept))
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - it stays open until close()

    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append one line.

        Raises:
            OSError: the line could not be written whole; the file is as it was before.
        """
        assert not {"step", "time"} & values.keys(), sorted(values)
        plain = {name: value if isinstance(value, str) else _finite(value) for name, value in values.items()}
        entry = {"step": int(step), "time": round(self._clock(), 3), **plain}
        self._append(json.dumps(entry, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def _append(self, line: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            os.ftruncate(self._file.fileno(), start)  # half a line would spoil the next one
            raise


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _lines_up_to(path: Path, step: int) -> list[bytes]:
    """The whole lines whose step is at most `step`; a machine that lost power leaves half of the last line."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines() if _step_of(line) <= step]


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
