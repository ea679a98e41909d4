"""Where metrics and pictures go: TensorBoard and metrics.jsonl. A resume forgets the steps that were rolled back."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from PIL import Image

from shards.atomic import write_atomically

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Takes what a run measures. Only rank 0 has one that writes; the others use `Recorders([])`."""

    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        """Keep the metrics of a global step (the number of optimizer steps taken), by name ("val/accuracy"): numbers,
        and here and there a word."""
        ...

    def text(self, name: str, text: str) -> None:
        """Keep a text that belongs to the run as a whole, such as its resolved recipe."""
        ...

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep a picture of a global step."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


class Recorders:
    """Hands everything to each of its recorders; without any, it does nothing.

    A recorder that cannot write (a full disk) is named in a warning and training goes on: metrics are not worth a run.
    """

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)
        self._failing: set[int] = set()

    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        for number, recorder in enumerate(self._recorders):
            self._attempt(number, lambda recorder=recorder: recorder.record(step, values))

    def text(self, name: str, text: str) -> None:
        for number, recorder in enumerate(self._recorders):
            self._attempt(number, lambda recorder=recorder: recorder.text(name, text))

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        for number, recorder in enumerate(self._recorders):
            self._attempt(number, lambda recorder=recorder: recorder.picture(step, name, image))

    def close(self) -> None:
        for number, recorder in enumerate(self._recorders):
            self._attempt(number, recorder.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, number: int, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            # Once per series of failures: a full disk would otherwise fill the log as well.
            if number not in self._failing:
                name = type(self._recorders[number]).__name__
                logger.warning("%s cannot write (%s); training goes on, these metrics are lost", name, error)
            self._failing.add(number)
        else:
            self._failing.discard(number)


class JsonlRecorder:
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

    def text(self, name: str, text: str) -> None:
        """Texts are not metrics: nothing is written."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Nor are pictures."""

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


class TensorBoardRecorder:
    """Scalars, texts and pictures in TensorBoard's event files.

    Args:
        directory: where the event files lie; a resumed run adds one to those of before.
        resumed_step: TensorBoard is told to forget everything after this step; None forgets everything there is.
    """

    def __init__(self, directory: Path | str, *, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import, and only rank 0 needs it

        purge_step = 0 if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)
        self._words: dict[str, str] = {}

    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, step)
            elif self._words.get(name) != value:  # a word stands until there is another one
                self._words[name] = value
                self._writer.add_text(name, value, step)

    def text(self, name: str, text: str) -> None:
        """Show the text as it is written: TensorBoard would read it as Markdown, which an indented block escapes."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
