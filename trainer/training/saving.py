"""At a milestone: validate, judge, save and export, in an order that a crash at any moment leaves resumable."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from safetensors import SafetensorError

from shards.atomic import write_atomically
from shards.errors import DataError, UserError
from trainer.engine.distributed import known_to_all
from trainer.engine.state_file import EngineState, read_checkpoint
from trainer.export.manifest import verified
from trainer.export.write import export_model, read_export
from trainer.run_directory import Status
from trainer.training.report import mean_losses, report_data, report_validation, speed_of, stops_at
from trainer.training.state import Run, TrainState
from trainer.training.validate import Evaluation, evaluate, gather_predictions


class Saved(NamedTuple):
    """A checkpoint that was written and that no pointer names yet."""

    name: str
    state: EngineState | None
    """What it holds, on rank 0."""


def validate_if_due(run: Run, state: TrainState) -> bool:
    """Validate and save if this step asks for it and has not been; False if a signal came first, with the state saved.

    Raises:
        UserError: on all ranks, if the metric of early stopping is not recorded or the disk is full.
    """
    if not run.milestones.validates_at(state.global_step) or state.validated_step == state.global_step:
        return True
    started = time.monotonic()
    evaluation = _validate(run, state)
    if evaluation is None:
        save(run, state)
        return False
    seconds = time.monotonic() - started
    run.progress.validation_done(seconds)
    window = state.take_window("since_validation")
    trained = mean_losses(window, run.config, "train")
    improved = _judge(run, state, {**trained, **evaluation.metrics})
    saved = _keep(run, state, evaluation, improved=improved)
    report_validation(run, state, evaluation, trained, improved=improved, seconds=seconds)
    if run.is_main:
        run.sight.report()
    report_data(run, window)
    run.checkpoints.publish("last", saved.name)  # only now: whoever dies before it validates this step again
    return True


def save(run: Run, state: TrainState) -> None:
    """Save, and resume from here next time; every rank must call this."""
    run.checkpoints.publish("last", _write(run, state).name)


def export_last(run: Run, state: TrainState) -> None:
    """Export the weights as they are: what a run without a best validation ends with; every rank must call this."""
    last = run.engine.export_state()
    _on_main(run, lambda: _export(run, last, state))


def repair_export(run: Run, state: TrainState) -> None:
    """Export the best checkpoint again if its export is missing, not whole or that of another step; every rank must
    call this.

    Raises:
        UserError: on all ranks, if the best checkpoint is damaged or the export cannot be written.
    """
    _on_main(run, lambda: _repair(run, state))


def _validate(run: Run, state: TrainState) -> Evaluation | None:
    assert run.validation is not None, "milestones plan validations only where there is data for them"
    batches, loader = run.validation
    with run.engine.evaluation_module() as objective:
        evaluation = evaluate(
            objective,
            run.built,
            batches,
            loader,
            run.world,
            task=run.task,
            losses=run.config.losses,
            stop_requested=lambda: run.stop.requested,
        )
        if evaluation is not None:
            run.sight.look(objective, run.built, batches, loader, run.world, run.task)
        if evaluation is not None and run.pictures is not None:
            run.pictures.record(run.recorder, state.global_step)
        return evaluation


def _judge(run: Run, state: TrainState, watched: dict[str, float]) -> bool:
    """Whether this validation is the best so far."""
    metric = run.config.early_stopping.metric
    if metric not in watched:
        known = ", ".join(sorted(watched))
        raise known_to_all(
            UserError(f"early_stopping.metric: this validation did not record {metric}; it recorded {known}")
        )
    improved = state.early_stopping.observe(watched[metric]).improved
    state.validated_step = state.global_step
    state.metrics = {name: value for name, value in watched.items() if name.startswith("val/")}
    if improved:
        state.best_step = state.global_step
    return improved


def _keep(run: Run, state: TrainState, evaluation: Evaluation, *, improved: bool) -> Saved:
    """Save; a best one is published and exported before anything else can go wrong."""
    predictions = gather_predictions(evaluation.predictions, run.task, run.world) if improved else None
    saved = _write(run, state)
    if improved:
        run.checkpoints.publish("best", saved.name)
        _on_main(run, lambda: _export(run, saved.state, state))
        _on_main(
            run, lambda: write_atomically(run.directory.predictions("val", predictions.ending), predictions.pieces)
        )
    return saved


def _write(run: Run, state: TrainState) -> Saved:
    state.saved_step = state.global_step
    exported = run.engine.export_state()
    progress = {**state.as_dict(), "identity": run.identity, "world_size": run.world.world_size}
    name = run.checkpoints.save(f"step{state.global_step:08d}", exported, progress)
    if run.is_main:
        epoch = state.global_step // run.milestones.steps_per_epoch
        run.directory.write_status(
            Status(
                state="running",
                global_step=state.global_step,
                epoch=epoch,
                best=state.early_stopping.best,
                best_step=state.best_step,
                stops_at=stops_at(run, state),
                left_seconds=run.progress.eta_seconds(state.global_step),
                speed=speed_of(run),
            )
        )
    return Saved(name, exported)


def _export(run: Run, saved: EngineState, state: TrainState) -> None:
    step, metrics = state.global_step, state.metrics
    export_model(run.config, run.built, saved.parameters, run.directory.export, step=step, metrics=metrics)


def _repair(run: Run, state: TrainState) -> None:
    with contextlib.suppress(DataError):
        verified(run.directory.export)
        if read_export(run.directory.export)["step"] == state.best_step:
            return
    best = run.checkpoints.pointed("best")
    if best is None:
        raise DataError(
            f"{run.directory.export}: is not that of step {state.best_step}, and {run.directory.checkpoints / 'best'} "
            "names no checkpoint to export again; start over with --fresh"
        )
    saved, progress = read_checkpoint(run.checkpoints.path(best))
    metrics, step = progress["metrics"], progress["global_step"]
    export_model(run.config, run.built, saved.parameters, run.directory.export, step=step, metrics=metrics)


def _on_main(run: Run, write: Callable[[], None]) -> None:
    """Let rank 0 write; where it cannot, every rank raises the same error."""
    error = None
    if run.is_main:
        try:
            write()
        except UserError as failed:
            error = failed
        except (OSError, SafetensorError) as failed:
            error = UserError(f"{run.directory.path}: cannot be written ({failed}); free some space on this disk")
    run.world.agree_or_raise(error)
