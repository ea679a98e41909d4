"""The training loop: for each step forward, backward, step, record; then maybe validate, save, stop."""

import contextlib
import hashlib
import logging
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch

from model.build import BuiltModel
from model.objective import SUM_NAMES
from shards.errors import DataError, UserError
from shards.loader import EvaluationBatches, Loader, MicroBatch, TrainingBatches, training_keys
from trainer.checkpoints import Checkpoints
from trainer.config import RunConfig
from trainer.distributed import World
from trainer.early_stopping import EarlyStopping
from trainer.engine import Engine, Update
from trainer.export import export_model, read_export
from trainer.loss_watch import LossWatch
from trainer.milestones import Milestones
from trainer.progress import Console, Progress, StepReport, render_duration
from trainer.recorders import Recorders
from trainer.run_directory import RunDirectory, Status, write_atomically
from trainer.schedule import learning_rate
from trainer.signals import StopRequest
from trainer.state_file import read_checkpoint
from trainer.validate import Evaluation, evaluate, gather_predictions, loss_sums, total_loss

logger = logging.getLogger(__name__)

MAX_UNAPPLIED_STEPS = 25
"""Optimizer steps in a row without finite gradients until the run gives up."""
STEP_SUMS = (*SUM_NAMES, "questions", "questions_cut", "negatives_missing", "stop_requests")
"""What every rank knows of its part of a step; added up over ranks once per step."""


class DivergedError(UserError):
    """Training cannot go on: gradients stay non-finite."""


class Outcome(NamedTuple):
    """How a training process ended."""

    finished: bool
    """False: stopped by a signal after saving."""
    message: str


@dataclass(kw_only=True)
class TrainState:
    """All of a run's state that is not in the engine; plain JSON values as a dict."""

    early_stopping: EarlyStopping
    global_step: int = 0
    """Optimizer steps taken, whether or not their gradients were finite."""
    validated_step: int | None = None
    """The step of the last validation that came to its end."""
    since_log: list[float] = field(default_factory=lambda: [0.0] * len(STEP_SUMS))
    """STEP_SUMS over the steps since the last report."""
    since_validation: list[float] = field(default_factory=lambda: [0.0] * len(STEP_SUMS))
    """STEP_SUMS over the steps since the last validation."""
    unapplied_steps: int = 0
    """Steps in a row whose gradients were not finite."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""
    best_step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "early_stopping"}
        return {**plain, "early_stopping": self.early_stopping.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `as_dict` gave."""
        for name in vars(self).keys() - {"early_stopping"}:
            setattr(self, name, state[name])
        self.early_stopping.load_state(state["early_stopping"])


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that training uses, built."""

    config: RunConfig
    directory: RunDirectory
    world: World
    built: BuiltModel
    engine: Engine
    train_batches: TrainingBatches
    train_loader: Loader
    validation: tuple[EvaluationBatches, Loader] | None
    milestones: Milestones
    checkpoints: Checkpoints
    identity: dict[str, str]
    """Digests of what a resumed run must find unchanged."""
    recorder: Recorders
    console: Console
    progress: Progress
    stop: StopRequest

    @property
    def is_main(self) -> bool:
        return self.world.rank == 0


def fit(run: Run, state: TrainState) -> Outcome:
    """Train from `state` to the end of the run, to an early stop, or to a signal."""
    watch = LossWatch()
    if not _finish_validation(run, state):  # a process that was stopped while it validated
        return _stopped(run, state)
    while state.global_step < run.milestones.total_steps and not state.early_stopping.stopped:
        for step in _train_epoch(run, state, watch):
            milestone = run.milestones.saves_at(state.global_step)
            if milestone and not (_finish_validation(run, state) and _save_unless_validated(run, state)):
                return _stopped(run, state)
            if step.stop_requested:
                if not milestone:
                    _save(run, state)
                return _stopped(run, state)
            if state.early_stopping.stopped:
                break
    return _finished(run, state)


class Step(NamedTuple):
    """One optimizer step, over all ranks."""

    sums: dict[str, float]
    update: Update
    learning_rate: float
    stop_requested: bool


def _train_epoch(run: Run, state: TrainState, watch: LossWatch) -> Iterator[Step]:
    """The steps that are left of this epoch; `state` counts each one before it is handed out."""
    per_epoch, accumulation = run.milestones.steps_per_epoch, run.train_batches.accumulation
    epoch, first = divmod(state.global_step, per_epoch)
    last = min(per_epoch, first + run.milestones.total_steps - state.global_step)
    batches = run.train_loader.batches(training_keys(epoch, first, last, accumulation))
    finished_at = time.monotonic()
    for _ in range(first, last):
        step = train_step(run, state.global_step, islice(batches, accumulation))
        state.global_step += 1
        _count(state, step, run)
        now = time.monotonic()
        run.progress.step_done(now - finished_at, round(step.sums["questions"]))
        _report(run, state, step, watch)
        yield step
        finished_at = time.monotonic() if run.milestones.validates_at(state.global_step) else now


def train_step(run: Run, global_step: int, micro_batches: Iterator[MicroBatch]) -> Step:
    """Forward and backward over the micro-batches of a step, and the optimizer's step behind the last."""
    optim = run.config.optim
    rate = learning_rate(
        global_step,
        peak=optim.lr,
        warmup_steps=optim.warmup_steps,
        total_steps=run.milestones.total_steps,
        final_ratio=optim.final_lr_ratio,
    )
    run.engine.set_learning_rate(rate)
    sums = torch.zeros(len(SUM_NAMES), device=run.world.device)
    questions = cut = missing = 0
    update = None
    for micro_step, item in enumerate(micro_batches):
        seed_generators(run.config.run.seed, global_step, micro_step, run.world.rank)
        output = run.engine(item.batch.to(run.world.device))
        run.engine.backward(output.loss)
        update = run.engine.step()
        sums += output.sums
        questions, cut, missing = questions + item.num_questions, cut + item.questions_cut, missing + item.negatives_missing
    assert update is not None, "the engine steps after the last micro-batch"
    # One small collective per step. Waiting for the GPU here costs less than a rank that decides something alone.
    own = [*sums.tolist(), questions, cut, missing, float(run.stop.requested)]
    total = dict(zip(STEP_SUMS, run.world.sum_across_ranks(own).tolist(), strict=True))
    return Step(total, update, rate, total["stop_requests"] > 0)


def seed_generators(seed: int, global_step: int, micro_step: int, rank: int) -> None:
    """Seed dropout from the position in the run alone: no generator has a state that a checkpoint would need."""
    digest = hashlib.blake2b(f"{seed}/{global_step}/{micro_step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _count(state: TrainState, step: Step, run: Run) -> None:
    for window in (state.since_log, state.since_validation):
        for number, name in enumerate(STEP_SUMS):
            window[number] += step.sums[name]
    # Under fp16 the search for the loss scale skips steps on purpose, until the scale can shrink no further.
    searching = step.update.loss_scale > 1.0
    state.unapplied_steps = 0 if step.update.applied or searching else state.unapplied_steps + 1
    if state.unapplied_steps >= MAX_UNAPPLIED_STEPS:
        raise DivergedError(
            f"step {state.global_step}: gradients were not finite for {MAX_UNAPPLIED_STEPS} steps in a row; lower "
            f"optim.lr (now {step.learning_rate:.1e}), set optim.max_grad_norm, or take precision=fp32 or bf16; the last "
            f"checkpoint in {run.directory.checkpoints} is intact"
        )


def _report(run: Run, state: TrainState, step: Step, watch: LossWatch) -> None:
    own = mean_losses(step.sums, run.config, "step")
    parts = {name: own[f"step/{name}_loss"] for name in ("answer", "itm") if f"step/{name}_loss" in own}
    matching = run.built.match_codec is not None
    warnings = watch.observe(
        state.global_step,
        parts,
        positives=round(step.sums["itm_positives"]) if matching else None,
        negatives=round(step.sums["itm_negatives"]) if matching else None,
        learning_rate=step.learning_rate,
        grad_norm=step.update.grad_norm,
    )
    if run.is_main:
        for warning in warnings:
            logger.warning("%s", warning)
    if not run.console.due(state.global_step):
        return
    window = dict(zip(STEP_SUMS, state.since_log, strict=True))
    state.since_log = [0.0] * len(STEP_SUMS)
    losses = mean_losses(window, run.config, "train")
    speed, left = run.progress.questions_per_second, run.progress.eta_seconds(state.global_step)
    run.console.show(
        StepReport(
            step=state.global_step,
            total_steps=run.milestones.total_steps,
            epoch=(state.global_step - 1) // run.milestones.steps_per_epoch + 1,
            epochs=run.config.limits.epochs,
            loss=losses.get("train/loss", float("nan")),
            parts={name: losses[f"train/{name}_loss"] for name in ("answer", "itm") if f"train/{name}_loss" in losses},
            learning_rate=step.learning_rate,
            grad_norm=step.update.grad_norm,
            questions_per_second=speed,
            eta_seconds=left,
        )
    )
    values = {
        **losses,
        "optim/lr": step.learning_rate,
        "optim/loss_scale": step.update.loss_scale,
        "optim/skipped_steps": float(step.update.skipped_steps),
        "data/epoch": state.global_step / run.milestones.steps_per_epoch,
        "data/questions_cut": window["questions_cut"],
        "data/negatives_missing": window["negatives_missing"],
        "memory/gib": _memory_gib(run.world.device),
    }
    optional = {"optim/grad_norm": step.update.grad_norm, "speed/questions_per_second": speed, "speed/left_seconds": left}
    run.recorder.record(state.global_step, values | {name: v for name, v in optional.items() if v is not None})


def _memory_gib(device: torch.device) -> float:
    """The most memory that this process has held so far: of the GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def mean_losses(sums: dict[str, float], config: RunConfig, prefix: str) -> dict[str, float]:
    """Losses per question: `prefix/answer_loss`, `prefix/itm_loss` and their weighted sum `prefix/loss`."""
    parts = loss_sums(sums).as_metrics(prefix)
    return {**total_loss(parts, config.losses, prefix), **parts}


def _finish_validation(run: Run, state: TrainState) -> bool:
    """Validate if this step asks for it and has not been; False if a signal came first, with the state saved."""
    if not run.milestones.validates_at(state.global_step) or state.validated_step == state.global_step:
        return True
    started = time.monotonic()
    evaluation = _validate(run)
    if evaluation is None:
        _save(run, state)
        return False
    run.progress.validation_done(time.monotonic() - started)
    _take_in(run, state, evaluation, time.monotonic() - started)
    return True


def _validate(run: Run) -> Evaluation | None:
    assert run.validation is not None
    batches, loader = run.validation
    with run.engine.evaluation_module() as objective:
        return evaluate(
            objective,
            run.built,
            batches,
            loader,
            run.world,
            losses=run.config.losses,
            stop_requested=lambda: run.stop.requested,
        )


def _take_in(run: Run, state: TrainState, evaluation: Evaluation, seconds: float) -> None:
    """Record a validation, judge it, and save: `best` the moment that it is found."""
    window = dict(zip(STEP_SUMS, state.since_validation, strict=True))
    trained = mean_losses(window, run.config, "train")
    watched = {**trained, **evaluation.metrics}
    metric = run.config.early_stopping.metric
    if metric not in watched:
        raise UserError(
            f"early_stopping.metric: {metric} was not recorded by this validation; recorded: {', '.join(sorted(watched))}"
        )
    verdict = state.early_stopping.observe(watched[metric])
    state.validated_step, state.metrics = state.global_step, evaluation.metrics
    state.since_validation = [0.0] * len(STEP_SUMS)
    if verdict.improved:
        state.best_step = state.global_step
    predictions = gather_predictions(evaluation.predictions, run.world)
    name, parameters = _save_named(run, state)
    if verdict.improved:
        run.checkpoints.publish("best", name)
        _on_main(run, lambda: _export(run, state.global_step, parameters, evaluation, predictions))
    run.checkpoints.publish("last", name)
    averages = {f"epoch/{key}": value for key, value in trained.items()}
    counts = {key: float(value) for key, value in evaluation.counts.items()}
    recorded = {**evaluation.metrics, **counts, **averages, "speed/validation_seconds": seconds}
    run.recorder.record(state.global_step, recorded)
    if run.is_main:
        logger.info("%s", _validation_line(run, state, evaluation, trained, improved=verdict.improved, seconds=seconds))


def _validation_line(
    run: Run, state: TrainState, evaluation: Evaluation, trained: dict[str, float], *, improved: bool, seconds: float
) -> str:
    metrics = evaluation.metrics
    shown = [("accuracy", "val/accuracy"), ("binary", "val/binary"), ("open", "val/open"), ("itm", "val/itm_accuracy")]
    rates = " ".join(f"{label} {100 * metrics[name]:.2f} %" for label, name in shown if name in metrics)
    losses = f"loss {metrics.get('val/loss', float('nan')):.4g} (train {trained.get('train/loss', float('nan')):.4g})"
    epoch = state.global_step / run.milestones.steps_per_epoch
    best = state.early_stopping.best
    verdict = "best so far, saved" if improved else f"best {best:.4g} at step {state.best_step}"
    return f"validation at step {state.global_step} (epoch {epoch:.4g}): {rates} {losses}, {render_duration(seconds)}: {verdict}"


def _export(
    run: Run, step: int, parameters: dict[str, torch.Tensor], evaluation: Evaluation | None, predictions: bytes | None
) -> None:
    metrics = {} if evaluation is None else {**evaluation.metrics}
    export_model(run.config, run.built, parameters, run.directory.export, step=step, metrics=metrics)
    if predictions is not None:
        write_atomically(run.directory.predictions("val"), predictions)


def _on_main(run: Run, act: Callable[[], None]) -> None:
    """Let rank 0 write; where it cannot, every rank raises the same error."""
    error = None
    if run.is_main:
        try:
            act()
        except OSError as failed:
            error = UserError(f"{run.directory.path}: cannot be written ({failed}); free some space on this disk")
    run.world.agree_or_raise(error)


def _save(run: Run, state: TrainState) -> None:
    name, _ = _save_named(run, state)
    run.checkpoints.publish("last", name)


def _save_unless_validated(run: Run, state: TrainState) -> bool:
    """Save at a milestone that is no validation: a validation saves by itself."""
    if state.validated_step != state.global_step:
        _save(run, state)
    return True


def _save_named(run: Run, state: TrainState) -> tuple[str, dict[str, torch.Tensor]]:
    """Write a checkpoint that no pointer names yet; returns its name, and on rank 0 its fp32 parameters."""
    exported = run.engine.export_state()
    progress = {**state.as_dict(), "identity": run.identity, "world_size": run.world.world_size}
    name = run.checkpoints.save(f"step{state.global_step:08d}", exported, progress)
    if run.is_main:
        epoch = state.global_step // run.milestones.steps_per_epoch
        run.directory.write_status(Status(state="running", global_step=state.global_step, epoch=epoch))
    return name, {} if exported is None else exported.parameters


def _stopped(run: Run, state: TrainState) -> Outcome:
    run.console.close()
    why = run.stop.reason or "a signal on another rank"
    return Outcome(False, f"stopped by {why} at step {state.global_step}, saved; run the same command again to go on")


def _repair_export(run: Run, state: TrainState) -> None:
    """Export the best checkpoint again if a process died between publishing and exporting it; not collective."""
    best = run.directory.checkpoints / "best"
    if not run.is_main or not best.is_file():
        return
    with contextlib.suppress(DataError):
        if read_export(run.directory.export)["step"] == state.best_step:
            return
    saved, progress = read_checkpoint(run.checkpoints.path(best.read_text(encoding="utf-8").strip()))
    metrics = progress["metrics"]
    export_model(run.config, run.built, saved.parameters, run.directory.export, step=state.best_step, metrics=metrics)


def _finished(run: Run, state: TrainState) -> Outcome:
    run.console.close()
    if run.validation is None:
        last = run.engine.export_state()
        _on_main(run, lambda: _export(run, state.global_step, last.parameters, None, None))
        return Outcome(True, f"trained {state.global_step} steps")
    _repair_export(run, state)
    stopped = state.early_stopping.stopped
    patience = run.config.early_stopping.patience
    why = f"stopped early after {patience} validations without progress" if stopped else "trained to the end"
    metric, best = run.config.early_stopping.metric, state.early_stopping.best
    return Outcome(True, f"{why}; best {metric} {best:.4g} at step {state.best_step} of {state.global_step}")
