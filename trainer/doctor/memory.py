"""What a recipe will hold in memory, part by part, and the largest micro-batch that fits this machine's devices."""

import os
from collections.abc import Iterator, Mapping

import torch
from transformers.utils import logging as transformers_logging

from model.build import BuiltModel
from shards.errors import UserError
from shards.read.micro_batches import Split
from trainer.build import assemble_model, classes_of, open_split, training_tokenizer
from trainer.config import RunConfig
from trainer.config.schema import policy_path
from trainer.doctor.table import Row
from trainer.engine.deepspeed_config import Precision, read_policy, resolve_precision, zero_stage
from trainer.engine.policy_choice import AUTO
from trainer.engine.state_memory import state_bytes
from trainer.training.memory_plan import DTYPES, GIB, MemoryPlan, make_plan, no_plan, remedy
from trainer.training.policy import choice_on_this_machine
from trainer.training.preflight import plan_machine

MANY_RANKS = 8
"""A world size beside this machine's own, to show what ZeRO shares."""


def memory_rows(config: RunConfig) -> list[Row]:
    """The plan of a recipe that can be started; a model that cannot be loaded, or has no plan, is said to have none."""
    transformers_logging.disable_progress_bar()
    try:
        machine = plan_machine(config, os.environ)
        train = open_split(config, "train")
        built = assemble_model(
            config,
            scratch_tokenizer=lambda: training_tokenizer(config, train),
            classes=classes_of(config, train.index),
        )
    except UserError as error:
        return [Row("memory", f"not planned: {str(error).splitlines()[0]}")]
    device = "cuda" if machine.gpus else "cpu"
    precision = resolve_precision(config.precision, device, too_wide=built.objective.too_wide_for_fp16)
    trained = sum(parameter.numel() for parameter in built.objective.parameters())
    rows = [
        Row("parameters", _parameters(trained, built.objective.frozen_counts(), precision)),
        *_state_rows(config, trained, precision, machine.processes),
    ]
    missing = no_plan(built)
    if missing is not None:
        return [*rows, Row("activations", f"not planned: {missing}")]
    assert isinstance(built, BuiltModel)
    return [*rows, *_activation_rows(config, built, train, trained, precision, machine.processes, device)]


def _parameters(trained: int, frozen: Mapping[str, int], precision: Precision) -> str:
    size = DTYPES[precision].itemsize
    told = ", ".join(f"{name} {count:,}" for name, count in frozen.items()) or "nothing"
    return (
        f"{trained:,} trained, {_gib(size * trained)}; frozen {told}, {_gib(size * sum(frozen.values()))} ({precision})"
    )


def _state_rows(config: RunConfig, trained: int, precision: Precision, ranks: int) -> Iterator[Row]:
    """Parameters, gradients and optimizer state of the trained part, by stage and world size."""
    for stage in range(4):
        policy = {"zero_optimization": {"stage": stage}}
        told = []
        for size in sorted({ranks, MANY_RANKS}):
            state = state_bytes(trained, element_bytes=DTYPES[precision].itemsize, policy=policy, world_size=size)
            told.append(f"{_gib(state.optimizer)} of {_gib(state.total)} on {size} rank{'s' * (size > 1)}")
        yield Row(f"optimizer, ZeRO-{stage}", f"{', '.join(told)}{' (chosen)' * (stage == _stage(config))}")


def _stage(config: RunConfig) -> int | None:
    return None if config.engine.policy == AUTO else zero_stage(read_policy(policy_path(config)))


def _activation_rows(
    config: RunConfig,
    built: BuiltModel,
    train: Split,
    trained: int,
    precision: Precision,
    ranks: int,
    device: str,
) -> Iterator[Row]:
    if config.engine.policy == AUTO:
        policy = choice_on_this_machine(
            config, parameters=trained, precision=precision, ranks=ranks, device_type=device
        ).policy
    else:
        policy = read_policy(policy_path(config))
    plan = make_plan(
        config,
        built,
        train.index,
        policy=policy,
        precision=precision,
        world_size=ranks,
        device=torch.device(device),
        ranks_here=ranks,
    )
    parts = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in plan.kept_per_visit.items())
    yield Row("activations", f"{plan.per_visit / 2**20:,.1f} MiB a visit at the peak; kept for the gradient: {parts}")
    yield _largest_row(config, plan)


def _largest_row(config: RunConfig, plan: MemoryPlan) -> Row:
    name = "largest micro-batch"
    if plan.largest is None:
        return Row(name, f"none: one visit needs {plan.describe(1)}", steps=(remedy(config, plan),))
    found = f"batch.micro_visits={plan.largest}: {plan.describe(plan.largest)}"
    visits = config.batch.micro_visits
    if isinstance(visits, int) and plan.total(visits) > plan.capacity:
        return Row(name, found, steps=(f"{visits} would need {plan.describe(visits)}: {remedy(config, plan)}",))
    return Row(name, found)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
