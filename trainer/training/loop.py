"""The training loop: for each step forward, backward, step, report; then maybe validate, save, stop."""

import hashlib
import logging
import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch.profiler import record_function

from shards.errors import UserError
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import training_keys
from trainer.training.baselines import report_baselines
from trainer.training.loss_watch import LossWatch
from trainer.training.report import report_data, report_step
from trainer.training.run_identity import keep_id
from trainer.training.saving import export_last, repair_export, save, validate_if_due
from trainer.training.state import HOST_SUMS, Run, Step, TrainState
from trainer.training.summary import summary

logger = logging.getLogger(__name__)

MAX_UNAPPLIED_STEPS = 25
"""Optimizer steps in a row without finite gradients until the run gives up."""


class DivergedError(UserError):
    """Training cannot go on: gradients stay non-finite."""


class Outcome(NamedTuple):
    """How a training process ended."""

    finished: bool
    """False: stopped by a signal, after saving."""
    message: str


def fit(run: Run, state: TrainState) -> Outcome:
    """Train from `state` to the end of the run, to an early stop, or to a signal. Every rank takes the same way."""
    if state.saved_step is None:
        save(run, state)  # a disk that is full says so now, and `last` names a checkpoint whatever is interrupted
    run.world.agree_on(lambda: keep_id(run.directory, run.world, run.run_id))
    if not validate_if_due(run, state):  # a process that was stopped while it validated
        return _stopped(run, state)
    watch = LossWatch()
    while not _is_over(run, state):
        for step in train_epoch(run, state, watch):
            at_milestone = run.milestones.saves_at(state.global_step)
            if at_milestone and not validate_if_due(run, state):
                return _stopped(run, state)
            if (at_milestone or step.stop_requested) and state.saved_step != state.global_step:
                save(run, state)
            if step.stop_requested:
                return _stopped(run, state)
            if _is_over(run, state):
                break
    return _finished(run, state)


def _is_over(run: Run, state: TrainState) -> bool:
    return state.global_step >= run.milestones.total_steps or state.early_stopping.stopped


def train_epoch(run: Run, state: TrainState, watch: LossWatch) -> Iterator[Step]:
    """The steps that are left of this epoch; `state` counts each one before it is handed out."""
    per_epoch = run.milestones.steps_per_epoch
    epoch, first = divmod(state.global_step, per_epoch)
    last = min(per_epoch, first + run.milestones.total_steps - state.global_step)
    batches = run.train_loader.batches(training_keys(epoch, first, last, run.micro_batches_in))
    since = time.monotonic()
    run.gauge.start()
    for number in range(first, last):
        if run.profiler is not None:
            run.profiler.step_begins(state.global_step + 1)
        count = run.micro_batches_in(epoch, number)
        if run.config.batch.micro_tokens is not None:
            run.engine.expect(count)
        step = train_step(run, state.global_step, islice(batches, count))
        state.count(step)
        _check_finite(run, state, step)
        run.progress.step_done(time.monotonic() - since, round(step.sums["questions"]))
        since = time.monotonic()
        report_step(run, state, step, watch)
        if run.profiler is not None:
            run.profiler.step_ended()
        yield step
        if run.milestones.validates_at(state.global_step):
            since = time.monotonic()  # validations are timed apart; saving belongs to the step behind it
            run.gauge.start()


def train_step(run: Run, global_step: int, micro_batches: Iterator[MicroBatch]) -> Step:
    """Forward and backward over the micro-batches of a step, and the optimizer's step behind the last."""
    rate, gauge = run.schedule(global_step), run.gauge
    run.engine.set_learning_rate(rate)
    names = run.built.objective.sum_names
    sums = torch.zeros(len(names), device=run.world.device)
    counted = [0, 0, 0]
    update = None
    run.world.at(f"step {global_step + 1}: reading data")
    for micro_step, item in enumerate(gauge.reading(micro_batches)):
        run.world.at(f"step {global_step + 1}: computing")
        seed_generators(run.config.run.seed, global_step, micro_step, run.world.rank)
        batch = item.batch.to(run.world.device)
        with gauge.computing(batch):
            with record_function("forward"):
                output = run.engine(batch)
            with record_function("backward"):
                run.engine.backward(output.loss)
        with gauge.draining():
            run.engine.await_gradients()
        with gauge.updating(), record_function("optimizer"):
            update = run.engine.step()
        sums += output.sums
        counted = [sum(pair) for pair in zip(counted, (item.num_items, item.items_cut, item.rows_missing), strict=True)]
        run.world.at(f"step {global_step + 1}: reading data")
    assert update is not None, "the engine steps behind the last micro-batch"
    # One small collective per step. Waiting for the GPU costs less than a rank that decides something alone.
    with gauge.draining():
        own = sums.tolist()
    own += [*counted, float(run.stop.requested)]
    with gauge.agreeing():
        summed = run.world.sum_across_ranks([*own, *gauge.own()]).tolist()
    total = dict(zip((*names, *HOST_SUMS), summed[: len(own)], strict=True))
    gauge.add(summed[len(own) :])
    return Step(total, update, rate)


def seed_generators(seed: int, global_step: int, micro_step: int, rank: int) -> None:
    """Seed dropout from the position in the run alone: no generator has a state that a checkpoint would need."""
    digest = hashlib.blake2b(f"{seed}/{global_step}/{micro_step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _check_finite(run: Run, state: TrainState, step: Step) -> None:
    if state.unapplied_steps < MAX_UNAPPLIED_STEPS:
        return
    error = DivergedError(
        f"step {state.global_step}: gradients were not finite for {MAX_UNAPPLIED_STEPS} steps in a row; lower optim.lr "
        f"(now {step.learning_rate:.1e}), set optim.max_grad_norm, or take precision=fp32 or bf16; the last checkpoint "
        f"in {run.directory.checkpoints} is intact"
    )
    run.world.agree_or_raise(error)  # all ranks know it: one of them says it


def _stopped(run: Run, state: TrainState) -> Outcome:
    run.console.close()
    why = run.stop.reason or "a signal on another rank"
    return Outcome(False, f"stopped by {why} at step {state.global_step}, saved; run the same command again to go on")


def _finished(run: Run, state: TrainState) -> Outcome:
    run.console.close()
    if state.best_step is None:
        export_last(run, state)
    else:
        repair_export(run, state)
    if run.is_main:
        report_baselines(run, state)
        for line in summary(run, state):
            logger.info("%s", line)
    if run.validation is None:
        report_data(run, state.take_window("since_validation"))
        return Outcome(True, f"trained {state.global_step} steps")
    early = run.config.early_stopping
    why = "trained to the end"
    if state.early_stopping.stopped:
        why = f"stopped early after {early.patience} validations without progress"
    best = state.early_stopping.best
    found = "no finite value, so the last weights are exported" if best is None else f"{best:.4g}"
    where = "" if best is None else f" at step {state.best_step} of {state.global_step}"
    return Outcome(True, f"{why}; best {early.metric}: {found}{where}")
