"""What a training process holds: the built parts of a run, which stay, and its state, which a checkpoint keeps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from model.objective import Built
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches, TrainingBatches
from trainer.config import RunConfig
from trainer.engine.distributed import World
from trainer.engine.engine import Engine, Update
from trainer.engine.signals import StopRequest
from trainer.reporting.gauge import Gauge
from trainer.reporting.progress import Console, Progress
from trainer.reporting.recorders import Recorders
from trainer.run_directory import RunDirectory
from trainer.tasks import Task
from trainer.training.checkpoints import Checkpoints
from trainer.training.early_stopping import EarlyStopping
from trainer.training.milestones import Milestones
from trainer.training.pictures import Pictures
from trainer.training.profile import StepProfiler
from trainer.training.sight import SightWatch

HOST_SUMS = ("questions", "questions_cut", "negatives_missing", "stop_requests")
"""What every rank knows of its part of a step beside the sums of its objective; added up over ranks once per step."""


_NOT_SAVED = {"early_stopping", "sum_names"}
"""Fields of a state that a checkpoint keeps in another form, or not at all."""


class Step(NamedTuple):
    """One optimizer step, over all ranks."""

    sums: dict[str, float]
    """By `TrainState.sum_names`."""
    update: Update
    learning_rate: float

    @property
    def stop_requested(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.sums["stop_requests"] > 0


@dataclass(kw_only=True)
class TrainState:
    """All of a run's state that is not in the engine; plain JSON values as a dict."""

    early_stopping: EarlyStopping
    sum_names: tuple[str, ...]
    """The objective's, then HOST_SUMS: the order of the windows below."""
    global_step: int = 0
    """Optimizer steps taken, whether or not their gradients were finite."""
    saved_step: int | None = None
    """The step of the checkpoint that was written last; None before the first."""
    validated_step: int = 0
    """The step of the last validation that came to its end."""
    best_step: int | None = None
    since_log: list[float] = field(init=False)
    """`sum_names` over the steps since the last report."""
    since_validation: list[float] = field(init=False)
    """`sum_names` over the steps since the last validation."""
    unapplied_steps: int = 0
    """Steps in a row whose gradients were not finite."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""

    def __post_init__(self) -> None:
        self.since_log, self.since_validation = ([0.0] * len(self.sum_names) for _ in range(2))

    def count(self, step: Step) -> None:
        """Take in a step."""
        self.global_step += 1
        for window in (self.since_log, self.since_validation):
            for number, name in enumerate(self.sum_names):
                window[number] += step.sums[name]
        # Under fp16 the search for the loss scale leaves out steps on purpose, until it can shrink no further.
        searching = step.update.loss_scale > 1.0
        self.unapplied_steps = 0 if step.update.applied or searching else self.unapplied_steps + 1

    def take_window(self, name: str) -> dict[str, float]:
        """The sums of `since_log` or `since_validation` by name, which start anew."""
        window = dict(zip(self.sum_names, getattr(self, name), strict=True))
        setattr(self, name, [0.0] * len(self.sum_names))
        return window

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        plain = {name: value for name, value in vars(self).items() if name not in _NOT_SAVED}
        return {**plain, "early_stopping": self.early_stopping.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `as_dict` gave."""
        for name in vars(self).keys() - _NOT_SAVED:
            setattr(self, name, state[name])
        self.early_stopping.load_state(state["early_stopping"])


class Told:
    """What a process has said already, and says no second time."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def first(self, what: str) -> bool:
        """Whether this is the first time."""
        known = what in self._told
        self._told.add(what)
        return not known


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that training uses, built."""

    config: RunConfig
    task: Task
    directory: RunDirectory
    world: World
    built: Built
    engine: Engine
    train_batches: TrainingBatches
    train_loader: Loader
    validation: tuple[EvaluationBatches, Loader] | None
    """None without validation data."""
    milestones: Milestones
    schedule: Callable[[int], float]
    """The learning rate of an optimizer step."""
    checkpoints: Checkpoints
    run_id: str = ""
    """Drawn at its first start; on every host's disk and in every checkpoint."""
    identity: dict[str, str]
    """Digests of what a resumed run must find unchanged, by split."""
    recorder: Recorders
    pictures: Pictures | None
    """Drawn on rank 0 at each validation."""
    sight: SightWatch
    console: Console
    progress: Progress
    gauge: Gauge = field(default_factory=Gauge)
    profiler: StepProfiler | None = None
    """None where no step is traced."""
    stop: StopRequest
    told: Told = field(default_factory=Told)

    def micro_batches_in(self, epoch: int, step: int) -> int:
        """Micro-batches of a step of an epoch, on every rank."""
        if self.config.batch.micro_tokens is None:
            return self.train_batches.accumulation
        return self.train_batches.micro_batches_in(epoch, step)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return self.world.rank == 0
