"""What is recorded and shown of a step and of a validation."""

import logging
import resource
from collections.abc import Sequence

import torch

from model.parts import PARTS
from trainer.config import RunConfig
from trainer.reporting.confusion_picture import confusion_picture
from trainer.reporting.progress import StepReport, render_duration
from trainer.reporting.recorders import Recorder
from trainer.tasks.parts import loss_sums, total_loss
from trainer.training.loss_watch import LossWatch
from trainer.training.state import Run, Step, TrainState
from trainer.training.validate import Evaluation

logger = logging.getLogger(__name__)


def report_step(run: Run, state: TrainState, step: Step, watch: LossWatch) -> None:
    """Warn of a loss that cannot learn, and every so many steps show and record the means since the last report."""
    _warn(run, state, step, watch)
    if not run.console.due(state.global_step):
        return
    window = state.take_window("since_log")
    losses = mean_losses(window, run.config, "train")
    limits = run.gauge.take()
    report = StepReport(
        step=state.global_step,
        total_steps=run.milestones.total_steps,
        epoch=(state.global_step - 1) // run.milestones.steps_per_epoch + 1,
        epochs=run.config.limits.epochs,
        loss=losses.get("train/loss", float("nan")),
        parts=_parts(losses, "train"),
        learning_rate=step.learning_rate,
        grad_norm=step.update.grad_norm,
        questions_per_second=run.progress.questions_per_second,
        limits=limits,
        best=state.early_stopping.best,
        best_step=state.best_step,
        stops_at=stops_at(run, state),
        eta_seconds=run.progress.eta_seconds(state.global_step),
    )
    run.console.show(report)
    values = {
        "optim/lr": report.learning_rate,
        "optim/grad_norm": report.grad_norm,
        "optim/loss_scale": step.update.loss_scale,
        "optim/skipped_steps": step.update.skipped_steps,
        "speed/questions_per_second": report.questions_per_second,
        "speed/left_seconds": report.eta_seconds,
        "progress/epoch": state.global_step / run.milestones.steps_per_epoch,
        "progress/questions_cut": window["questions_cut"],
        "progress/negatives_missing": window["negatives_missing"],
        "memory/gib": _memory_gib(run.world.device),
    }
    numbers = losses | {name: float(value) for name, value in values.items() if value is not None}
    run.recorder.record(state.global_step, numbers | ({} if limits is None else limits.as_metrics()))


def stops_at(run: Run, state: TrainState) -> int | None:
    """The step at which the run stops early if no validation until then brings progress; None if it ends before."""
    left = state.early_stopping.patience_left
    if left is None:
        return None
    at = run.milestones.validation_after(state.validated_step, left)
    return at if at < run.milestones.total_steps else None


def speed_of(run: Run) -> dict[str, float | str] | None:
    """How fast the run was at its last report, and what bounds it; None before the first."""
    rate, limits = run.progress.questions_per_second, run.gauge.latest
    if rate is None or limits is None:
        return None
    found = {"speed/questions_per_second": rate} | limits.as_metrics()
    return {name.removeprefix("speed/"): value for name, value in found.items()}


def _warn(run: Run, state: TrainState, step: Step, watch: LossWatch) -> None:
    matching = run.config.losses.itm > 0
    warnings = watch.observe(
        state.global_step,
        _parts(mean_losses(step.sums, run.config, "step"), "step"),
        positives=round(step.sums["itm_positives"]) if matching else None,
        negatives=round(step.sums["itm_negatives"]) if matching else None,
    )
    for warning in warnings if run.is_main else ():
        logger.warning("%s", warning)


def mean_losses(sums: dict[str, float], config: RunConfig, prefix: str) -> dict[str, float]:
    """Losses per question: `prefix/answer_loss`, `prefix/itm_loss` and their weighted sum `prefix/loss`."""
    parts = loss_sums(sums).as_metrics(prefix)
    return {**total_loss(parts, config.losses, prefix), **parts}


def _parts(losses: dict[str, float], prefix: str) -> dict[str, float]:
    """Loss parts by their short names."""
    return {part: losses[f"{prefix}/{part}_loss"] for part in PARTS if f"{prefix}/{part}_loss" in losses}


def _memory_gib(device: torch.device) -> float:
    """The most memory that this process has held so far: of the GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def report_validation(
    run: Run, state: TrainState, evaluation: Evaluation, trained: dict[str, float], *, improved: bool, seconds: float
) -> None:
    """Record a validation with the mean training losses since the one before, and show its headline."""
    averages = {f"epoch/{name.removeprefix('train/')}": value for name, value in trained.items()}
    counts = {name: float(value) for name, value in evaluation.counts.items()}
    values = {**evaluation.metrics, **counts, **averages, "speed/validation_seconds": seconds}
    run.recorder.record(state.global_step, values)
    if not run.is_main:
        return
    _show(run.recorder, state.global_step, evaluation)
    if improved:
        run.recorder.best(state.global_step, evaluation.metrics)
    metrics = evaluation.metrics
    shown = [(label, f"val/{name}") for label, name in run.task.headline]
    rates = ", ".join(f"{label} {100 * metrics[name]:.2f} %" for label, name in shown if name in metrics)
    logger.info(
        "validation at step %d, epoch %.4g: %s; loss %.4g, in training %.4g; %s; %s",
        state.global_step,
        state.global_step / run.milestones.steps_per_epoch,
        rates,
        metrics.get("val/loss", float("nan")),
        trained.get("train/loss", float("nan")),
        render_duration(seconds),
        "best so far, saved" if improved else _best_before(state),
    )


def _show(recorder: Recorder, step: int, evaluation: Evaluation) -> None:
    """What is looked at, and is no number."""
    if evaluation.confusion is not None:
        recorder.picture(step, "val/confusion", confusion_picture(evaluation.confusion))
    if evaluation.matching is not None:
        recorder.precision_recall(step, "val/itm", evaluation.matching.precision_recall())


def _best_before(state: TrainState) -> str:
    best = state.early_stopping.best
    return "none was finite so far" if best is None else f"best {best:.4g} at step {state.best_step}"


def report_data(run: Run, window: dict[str, float]) -> None:
    """Say how many questions were cut, and which negatives the data did not offer, since the last validation."""
    questions = round(window["questions"])
    if run.is_main and window["questions_cut"]:
        limit = run.config.data.max_question_tokens
        logger.info(
            "%d of %d questions were cut at data.max_question_tokens=%d",
            round(window["questions_cut"]),
            questions,
            limit,
        )
    if run.is_main and window["negatives_missing"] and run.told.first("negatives_missing"):
        kinds = run.config.losses.negatives
        logger.info("%s", negatives_note(round(window["negatives_missing"]), questions * len(kinds), kinds))


def negatives_note(missing: int, wanted: int, kinds: Sequence[str]) -> str:
    """What it means that the data does not offer all negatives, and what to do; said once."""
    meaning = f"matching learns from the other {wanted - missing}"
    if missing == wanted:
        meaning = "matching only ever sees what belongs together, and learns nothing"
    way_out = "losses.negatives=[question] takes the texts of other images"
    if "question" in kinds:
        way_out = "with the same questions for every image there are none, and losses.itm=0 leaves matching out"
    return (
        f"{missing} of {wanted} negatives have weight 0: the data offers none of the kind {' or '.join(kinds)} for "
        f"them, so {meaning}; {way_out} (docs/losses.md)"
    )
