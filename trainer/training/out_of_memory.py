"""What becomes of a rank that runs out of memory: one line with the plan and the number to set."""

import gc
import logging
import re
from collections.abc import Callable
from typing import TypeVar

import torch

from model.build import BuiltModel
from shards.errors import UserError
from trainer.engine.waiting import first_line
from trainer.training.memory_plan import MemoryPlan, make_plan, no_plan, planned_visits, remedy
from trainer.training.state import Run

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

_OF_THE_HOST = re.compile(r"can't allocate memory|not enough memory|out_of_memory|std::bad_alloc")
"""Torch's allocator of host memory, and oneDNN's, have no class of their own for it."""


class OutOfMemoryError(UserError):
    """A micro-batch does not fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, of a GPU or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OF_THE_HOST.search(str(error)) is not None


def explained(run: Run, act: Callable[[], Made]) -> Made:
    """What `act` gives; of an allocation that fails in it, what was planned and what to set.

    Raises:
        OutOfMemoryError: in the place of the allocator's own error.
    """
    made, said = _tried(act)
    if said is None:
        return made
    # Only here is the error gone, and with its frames what the step has held: planning wants a little memory too.
    gc.collect()
    try:
        plan = _plan(run)
    except (RuntimeError, MemoryError) as error:  # no room for a thread of autograd's: the number is known without it
        logger.warning("the memory plan cannot be made: %s", first_line(error))
        plan = None
    batch = run.config.batch
    key = "micro_visits" if batch.micro_tokens is None else "micro_tokens"
    planned = "" if plan is None else f"; planned at most {plan.describe(planned_visits(run.config))}"
    raise OutOfMemoryError(
        f"out of memory with batch.{key}={getattr(batch, key)} ({said}){planned}; {remedy(run.config, plan)} and run "
        "the same command again"
    )


def start_explained(act: Callable[[], Made]) -> Made:
    """What `act` gives, which loads the model and makes the optimizer; nothing can be planned yet.

    Raises:
        OutOfMemoryError: in the place of the allocator's own error.
    """
    made, said = _tried(act)
    if said is None:
        return made
    raise OutOfMemoryError(
        f"out of memory before the first step ({said}): the model and its optimizer do not fit here; take a smaller "
        "model, freeze more of it (model.freeze), set precision=bf16, or start fewer ranks on this machine "
        "(engine.processes)"
    )


def _tried(act: Callable[[], Made]) -> tuple[Made | None, str | None]:
    """What `act` gives, or what an allocator says that has failed in it."""
    try:
        return act(), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, first_line(error)


def _plan(run: Run) -> MemoryPlan | None:
    """None where it cannot be told: of other models, and under ZeRO-3, which has taken the parameters apart."""
    built, world = run.built, run.world
    if no_plan(built) is not None or run.engine.zero_stage == 3:
        return None
    assert isinstance(built, BuiltModel)
    return make_plan(
        run.config,
        built,
        run.train_batches.split.index,
        policy={"zero_optimization": {"stage": run.engine.zero_stage}},
        precision={torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[run.engine.dtype],
        world_size=world.world_size,
        device=world.device,
        ranks_here=len(world.ranks_here),
    )
