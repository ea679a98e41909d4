"""How far a run is and how long it still takes: rates as arithmetic, a line that says it, a console that shows it."""

import contextlib
import logging
import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from shards.progress import silence
from trainer.reporting.gauge import Limits

logger = logging.getLogger(__name__)


class _Step(NamedTuple):
    seconds: float
    questions: int


@dataclass(kw_only=True)
class Progress:
    """Measures training steps and validations, and foretells the rest of the whole run.

    It reads no clock: the caller says how many seconds each thing took. Seconds of a training step count from the end
    of the step or validation before it, so waits for data and saved checkpoints are part of them.
    """

    total_steps: int
    """Optimizer steps of the whole run."""
    total_validations: int
    """Validations of the whole run."""
    questions_per_validation: int
    validations_done: int = 0
    """Those of earlier processes of a resumed run, then counted on."""
    validation_cost: float = 1.0
    """Until a validation was timed, one of its questions is taken to cost this many times one of training: there is
    no backward pass, but answers are generated token by token."""
    slow_steps: int = 3
    """The first steps of a process, which start workers and warm up kernels, count only until there are others."""
    window: int = 100
    """Training steps over which the rate is the mean."""
    _steps: deque[_Step] = field(default_factory=deque, init=False)
    _num_steps: int = field(default=0, init=False)
    _validation_seconds: list[float] = field(default_factory=list, init=False)

    def step_done(self, seconds: float, questions: int) -> None:
        """Take in an optimizer step and the questions that it trained on, over all ranks."""
        self._num_steps += 1
        if self._num_steps == self.slow_steps + 1:
            self._steps.clear()
        self._steps.append(_Step(seconds, questions))
        if len(self._steps) > self.window:
            self._steps.popleft()

    def validation_done(self, seconds: float) -> None:
        """Take in a whole validation."""
        self.validations_done += 1
        self._validation_seconds.append(seconds)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a training step; None before the first."""
        return sum(step.seconds for step in self._steps) / len(self._steps) if self._steps else None

    @property
    def questions_per_second(self) -> float | None:
        """Questions trained on per second, over all ranks; None before the first step."""
        seconds = sum(step.seconds for step in self._steps)
        return sum(step.questions for step in self._steps) / seconds if seconds > 0 else None

    @property
    def validation_seconds(self) -> float | None:
        """Seconds of one validation: the mean of those timed, else from the training rate; None without either."""
        if self._validation_seconds:
            return sum(self._validation_seconds) / len(self._validation_seconds)
        rate = self.questions_per_second
        return self.validation_cost * self.questions_per_validation / rate if rate else None

    def eta_seconds(self, step: int) -> float | None:
        """Seconds until the whole run is done, the validations to come included; None while nothing is known.

        Args:
            step: optimizer steps taken so far, over the whole run.
        """
        if self.step_seconds is None:
            return None
        validations = max(0, self.total_validations - self.validations_done)
        training = max(0, self.total_steps - step) * self.step_seconds
        return training + validations * (self.validation_seconds or 0.0)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is shown of a training step. None and an empty mapping are left out of the line."""

    step: int
    """Optimizer steps taken, this one included."""
    total_steps: int
    epoch: int
    """Of this step, the first being 1."""
    epochs: int
    loss: float
    parts: Mapping[str, float] = field(default_factory=dict)
    """Each part of the loss by its short name: answer, itm."""
    learning_rate: float
    grad_norm: float | None = None
    questions_per_second: float | None = None
    limits: Limits | None = None
    best: float | None = None
    """Of the metric that decides, at the best validation so far."""
    best_step: int | None = None
    stops_at: int | None = None
    """The step at which the run stops early if no validation until then is better; None does not stop early."""
    eta_seconds: float | None = None


def render_line(report: StepReport) -> str:
    """One line, like `step 120/1200 epoch 2/10 loss 1.234 (answer 0.9 itm 0.3) lr 1.0e-04 grad 0.8 412 questions/s
    MFU 38 % bound by compute (data 1 % network 3 % host 2 %) best 0.8421, 20 steps ago left 12 min 10 s (stops at step
    400 without progress)`."""
    pieces = [
        f"step {report.step}/{report.total_steps}",
        f"epoch {report.epoch}/{report.epochs}",
        f"loss {report.loss:.4g}",
    ]
    if report.parts:
        pieces.append("(" + " ".join(f"{name} {value:.4g}" for name, value in report.parts.items()) + ")")
    pieces.append(f"lr {report.learning_rate:.1e}")
    if report.grad_norm is not None:
        pieces.append(f"grad {report.grad_norm:.3g}")
    if report.questions_per_second is not None:
        pieces.append(f"{render_rate(report.questions_per_second)} questions/s")
    if report.limits is not None:
        pieces.append(render_limits(report.limits))
    if report.best is not None and report.best_step is not None:
        pieces.append(f"best {report.best:.4g}, {report.step - report.best_step} steps ago")
    if report.eta_seconds is not None:
        pieces.append(f"left {render_duration(report.eta_seconds)}")
    if report.stops_at is not None:
        pieces.append(f"(stops at step {report.stops_at} without progress)")
    return " ".join(pieces)


def render_limits(limits: Limits) -> str:
    """`MFU 38 % bound by compute (data 1 % network 3 % host 2 %)`; without MFU where there is none."""
    mfu = "" if limits.mfu is None else f"MFU {100 * limits.mfu:.0f} % "
    waits = " ".join(f"{name} {100 * getattr(limits, name):.0f} %" for name in ("data", "network", "host"))
    return f"{mfu}bound by {limits.bound_by} ({waits})"


def render_rate(per_second: float) -> str:
    """A rate with one decimal below 10, else without."""
    return f"{per_second:.1f}" if per_second < 9.95 else f"{per_second:.0f}"


def render_duration(seconds: float) -> str:
    """A duration in its two largest units: `45 s`, `12 min 10 s`, `2 h 31 min`, `3 d 4 h`."""
    if not math.isfinite(seconds):
        return "unknown"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hours} h {minute} min"
    if minutes:
        return f"{minutes} min {second} s"
    return f"{second} s"


class Console:
    """Shows reports: a bar where the stream is a terminal, else a plain log line. Ranks other than 0 show nothing.

    Args:
        total_steps: optimizer steps of the whole run.
        every_steps: a report is due every so many steps.
        is_main: whether this rank is the one that shows.
        stream: where the bar would be; log lines go where logging is told to.
    """

    def __init__(
        self, *, total_steps: int, every_steps: int, is_main: bool = True, stream: TextIO | None = None
    ) -> None:
        self._total_steps, self._every_steps, self._is_main = total_steps, every_steps, is_main
        self._first_step: int | None = None
        self._stream = stream or sys.stdout
        self._bar: tqdm | None = None
        self._cleanup = contextlib.ExitStack()

    def due(self, step: int) -> bool:
        """Whether a report is due at this step: the first of this process, every `every_steps`-th and the last.

        The same on every rank, so that a collective that gathers the report may hang on it.
        """
        if self._first_step is None:
            self._first_step = step
        return step in (self._first_step, self._total_steps) or step % self._every_steps == 0

    def show(self, report: StepReport) -> None:
        """Show a report."""
        if not self._is_main:
            return
        if self._is_terminal():
            try:
                self._draw(report)
                return
            except OSError:
                self._give_up_bar()
        elif self._bar is not None:  # tqdm keeps quiet about a terminal that hung up
            self._give_up_bar()
        logger.info("%s", render_line(report))

    def close(self) -> None:
        """Leave the bar as it last was, and the cursor below it."""
        try:
            self._cleanup.close()
        except OSError:
            self._give_up_bar()
        self._bar = None

    def _is_terminal(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def _draw(self, report: StepReport) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=self._total_steps,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:12}| {desc}",
            )
            self._cleanup.callback(self._bar.close)
            self._cleanup.enter_context(logging_redirect_tqdm())  # log lines appear above the bar, not inside it
        self._bar.n = report.step
        self._bar.set_description_str(render_line(report))

    def _give_up_bar(self) -> None:
        """The terminal is gone (a lost connection): from now on there are log lines only."""
        assert self._stream is not None
        silence(self._stream)
        self._stream, self._bar = None, None
        self._cleanup.close()


class ConsoleHandler(logging.StreamHandler):
    """Log lines on a stream (stdout by default) that nobody may be reading any more.

    Training must go on when the launcher or a pager behind a pipe has ended. `logging` would then print a traceback
    per line, and the interpreter would end with status 120, because its last flush of stdout fails as well. So the
    first failed write silences the stream for good.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream or sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
            return
        silence(self.stream)
