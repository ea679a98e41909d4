"""What a run will hold in memory, and the largest micro-batch that fits: worked out before a step is taken."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.build import BuiltModel
from model.cost.largest import largest_batch
from model.cost.memory import simulate
from model.objective import Built
from shards.errors import ConfigError
from shards.format.index import SplitIndex
from shards.tasks import TASKS
from trainer.build import image_size
from trainer.config import RunConfig
from trainer.engine.deepspeed_config import Precision
from trainer.engine.device_memory import capacity
from trainer.engine.distributed import World
from trainer.engine.state_memory import StateBytes, state_bytes

logger = logging.getLogger(__name__)

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of one rank, for micro-batches of the longest questions that the recipe allows."""

    state: StateBytes
    frozen: int
    """Parameters that are not trained."""
    kept_per_visit: Mapping[str, int]
    """What each part of the model keeps of a visit between forward and backward."""
    fixed: int
    """What a micro-batch takes at its peak beside what grows with its visits."""
    per_visit: int
    """By how much its peak grows with each visit."""
    capacity: int
    """What the rank may take."""
    sizes: Sequence[int]
    """Micro-batches that a rank's visits can be cut into, ascending."""

    def total(self, visits: int) -> int:
        """All of it, with so many visits at a time."""
        return self.state.total + self.frozen + self.fixed + visits * self.per_visit

    @property
    def largest(self) -> int | None:
        """The largest micro-batch that fits; None if not even the smallest does."""
        return max((size for size in self.sizes if self.total(size) <= self.capacity), default=None)

    def below(self, visits: int) -> int | None:
        """What to set where `visits` were too many: the largest smaller one that fits, or else the next smaller one."""
        smaller = [size for size in self.sizes if size < visits]
        fitting = [size for size in smaller if self.total(size) <= self.capacity]
        return max(fitting or smaller, default=None)

    def describe(self, visits: int) -> str:
        """`9.1 GiB of 12.0: parameters 0.1, gradients 0.1, optimizer 0.3, ...`, in one line."""
        parts = {
            "parameters": self.state.parameters,
            "gradients": self.state.gradients,
            "optimizer": self.state.optimizer,
            "buffers": self.state.buffers,
            "frozen": self.frozen,
            f"activations of {visits} visits": self.fixed + visits * self.per_visit,
        }
        told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
        return f"{self.total(visits) / GIB:.2f} GiB of {self.capacity / GIB:.2f}: {told}"


def no_plan(built: Built) -> str | None:
    """Why there is no plan for a model; None where there is one."""
    if not isinstance(built, BuiltModel):
        return "the activations of a whole checkpoint depend on its images and on its own code"
    if built.objective.is_guided:
        return "what efficient_sam_masks computes depends on what it sees"
    return None


def make_plan(
    config: RunConfig,
    built: BuiltModel,
    index: SplitIndex,
    *,
    policy: dict[str, Any],
    precision: Precision,
    world_size: int,
    device: torch.device,
    ranks_here: int,
) -> MemoryPlan:
    """The plan of a rank; `no_plan` has nothing against it.

    Args:
        index: of the training shards, which say of what shape regions are.
        device: that it computes on.
        ranks_here: ranks that share this machine.
    """
    dtype = DTYPES[precision]
    batches = [_largest(config, built, index, visits) for visits in (1, 2)]
    one, two = (simulate(built.objective, batch, dtype=dtype, device=device) for batch in batches)
    per_visit = max(two.peak - one.peak, 0)
    trained = sum(parameter.numel() for parameter in built.objective.parameters())
    frozen = sum(built.objective.frozen_counts().values()) * dtype.itemsize
    return MemoryPlan(
        state=state_bytes(trained, element_bytes=dtype.itemsize, policy=policy, world_size=world_size),
        frozen=frozen,
        kept_per_visit={name: size - one.kept.get(name, 0) for name, size in two.kept.items()},
        fixed=max(one.peak - per_visit, 0),
        per_visit=per_visit,
        capacity=capacity(device, ranks_here=ranks_here),
        sizes=tuple(_sizes(config.batch.visits // world_size)),
    )


def settle_micro_visits(
    config: RunConfig, built: Built, index: SplitIndex, world: World, *, policy: dict[str, Any], precision: Precision
) -> RunConfig:
    """The recipe with a number in the place of `batch.micro_visits: auto`, the same on every rank; collective.

    Raises:
        ConfigError: on all ranks, where nothing can be planned or not even one visit fits on one of them.
    """
    if config.batch.micro_visits != "auto":
        return config
    visits = world.agree_on(lambda: _fitting(config, built, index, world, policy, precision))
    agreed = -int(world.max_across_ranks(torch.tensor([-visits])).item())
    if world.rank == 0:
        logger.info("batch.micro_visits: auto chose %d", agreed)
    return config.model_copy(update={"batch": config.batch.model_copy(update={"micro_visits": agreed})})


def _fitting(
    config: RunConfig,
    built: Built,
    index: SplitIndex,
    world: World,
    policy: dict[str, Any],
    precision: Precision,
) -> int:
    missing = no_plan(built)
    if missing is not None:
        raise ConfigError(f"batch.micro_visits: auto cannot plan: {missing}; set a number")
    assert isinstance(built, BuiltModel)
    plan = make_plan(
        config,
        built,
        index,
        policy=policy,
        precision=precision,
        world_size=world.world_size,
        device=world.device,
        ranks_here=len(world.ranks_here),
    )
    if plan.largest is None:
        raise ConfigError(
            f"batch.micro_visits: auto: one visit does not fit: {plan.describe(1)}; {_smaller_visits(config)}"
        )
    logger.info("memory: %s", plan.describe(plan.largest))
    return plan.largest


def planned_visits(config: RunConfig) -> int:
    """Visits of the longest questions in a micro-batch, which the plan speaks of."""
    batch, data = config.batch, config.data
    if batch.micro_tokens is None:
        return batch.least_visits
    return max(1, batch.micro_tokens // (data.questions_per_visit * data.max_question_tokens))


def remedy(config: RunConfig, plan: MemoryPlan | None) -> str:
    """What to set after a micro-batch that did not fit."""
    batch = config.batch
    if batch.micro_tokens is not None:
        hopeless = plan is not None and plan.total(1) > plan.capacity
        return _smaller_visits(config) if hopeless else f"set batch.micro_tokens={max(1, batch.micro_tokens // 2)}"
    visits = batch.least_visits
    smaller = plan.below(visits) if plan is not None else max((n for n in _sizes(visits) if n < visits), default=None)
    return f"set batch.micro_visits={smaller}" if smaller is not None else _smaller_visits(config)


def _smaller_visits(config: RunConfig) -> str:
    half = config.data.questions_per_visit // 2
    fewer = f"lower data.questions_per_visit (to {half} of a new run)" if half else "take a smaller model"
    return fewer if config.model.recomputed_share == 1 else f"set model.gradient_checkpointing=true, or {fewer}"


def _sizes(visits: int) -> Iterator[int]:
    return (size for size in range(1, visits + 1) if visits % size == 0)


def _largest(config: RunConfig, built: BuiltModel, index: SplitIndex, visits: int) -> Any:
    data = config.data
    return largest_batch(
        built,
        TASKS[config.task],
        visits=visits,
        questions_per_visit=data.questions_per_visit,
        rows_per_question=1 + len(config.losses.negatives),
        max_question_tokens=data.max_question_tokens,
        max_answer_tokens=data.max_answer_tokens,
        image_size=image_size(config, built),
        regions=None if index.medium == "pixels" else index.regions,
    )
