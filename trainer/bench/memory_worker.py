"""One process of `duoflow bench memory`: bytes or seconds of a step of each shape, as a line of JSON."""

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from model.build import BuiltModel, build_model
from model.config import LossConfig, ModelConfig
from model.cost.largest import largest_batch
from model.cost.memory import simulate
from model.towers.tokenizer import build_tokenizer
from shards.read.collate import Batch
from shards.tasks import TASKS
from trainer.config.schema import REPOSITORY
from trainer.engine.deepspeed_config import read_policy, resolve
from trainer.engine.device_memory import resident_bytes
from trainer.engine.distributed import World, initialize
from trainer.engine.engine import Engine
from trainer.engine.process import leave
from trainer.engine.state_memory import state_bytes

VISITS = 8
PROBES = (2, 4)
"""Visits of the micro-batches that the time of one of VISITS is predicted from."""
REPEATS = 5
ACCUMULATION = 2
"""Micro-batches of a step whose bytes are counted: behind the first one, gradients lie beside the activations."""
STAGE = 1
TOKENS = {"max_question_tokens": 24, "max_answer_tokens": 6}
SIDE = 112
SCRATCH = {
    "image_size": SIDE,
    "patch_size": 8,
    "width": 192,
    "heads": 6,
    "vision_layers": 6,
    "text_layers": 6,
    "vocab_size": 2000,
}
SAM = {
    "variant": "custom",
    "image_size": SIDE,
    "patch_size": 8,
    "width": 96,
    "depth": 4,
    "heads": 4,
    "neck_width": 64,
}
LORA = {"rank": 8, "targets": ["query", "value"]}
DIFNET = {"layers": 3, "separate_layers": 1, "repeats": 2, "heads": 6, "dropout": 0.1}
FROZEN = ("vision", "second_stream", "match", "answer")


class Shape(NamedTuple):
    """What a recipe says, with smaller towers."""

    model: dict[str, Any]
    losses: dict[str, Any]
    task: str = "gqa"
    questions: int = 16


SHAPES = {
    "gqa_blip_base": Shape({"freeze": FROZEN}, {}),
    "gqa_blip_lora": Shape({"freeze": FROZEN, "lora": {"match": LORA, "answer": LORA}}, {}),
    "vqa_blip_base": Shape(
        {"freeze": FROZEN, "lora": {"answer": LORA}}, {"answer": 1.0, "classify": 0.0}, task="vqa", questions=8
    ),
    "snli_ve_blip_base": Shape(
        {"freeze": FROZEN[:2], "gradient_checkpointing": True}, {"classify": 1.0}, task="snli_ve"
    ),
    "nlvr2_blip_base": Shape(
        {"freeze": FROZEN[:2], "gradient_checkpointing": True}, {"classify": 1.0}, task="nlvr2", questions=2
    ),
    "easyvqa": Shape({"freeze": ()}, {"itm": 0.0, "answer": 1.0}),
}
RECOMPUTED = "gqa_blip_base"
"""The shape whose fusion and texts are computed with checkpointing and without."""
SHARES = (0.0, 0.6, 1.0)
"""Of its layers, computed again."""


def build(shape: Shape, *, checkpointing: float | None = None) -> BuiltModel:
    """Its model, untrained."""
    model = {"scratch": SCRATCH, "efficient_sam": SAM, "fusion": DIFNET, **shape.model}
    if checkpointing is not None:
        model["gradient_checkpointing"] = checkpointing
    task = TASKS[shape.task]
    weights = dict.fromkeys(task.reads, 0.0) | dict(task.losses) | shape.losses
    return build_model(
        ModelConfig.model_validate(model),
        LossConfig.model_validate(weights),
        task=task,
        classes=task.classes or (),
        seed=1,
        scratch_tokenizer=lambda: build_tokenizer(["a question about the color of it"], vocab_size=100),
        **TOKENS,
    )


def batch_of(built: BuiltModel, shape: Shape, visits: int) -> Batch:
    """Its largest micro-batch."""
    return largest_batch(
        built,
        TASKS[shape.task],
        visits=visits,
        questions_per_visit=shape.questions,
        rows_per_question=1 + len(LossConfig().negatives),
        image_size=SIDE,
        **TOKENS,
    )


def planned(built: BuiltModel, shape: Shape, visits: int) -> int:
    """What `duoflow doctor` would say, for fp32 on one rank."""
    one, two = (simulate(built.objective, batch_of(built, shape, count)).peak for count in (1, 2))
    trained = sum(parameter.numel() for parameter in built.objective.parameters())
    frozen = 4 * sum(built.objective.frozen_counts().values())
    state = state_bytes(trained, element_bytes=4, policy=_policy(), world_size=1)
    return state.total + frozen + one + (visits - 1) * (two - one)


def measured_bytes(shape: Shape, world: World, *, checkpointing: float | None = None) -> tuple[int, int, int]:
    """(planned, the most of a model with its engine and three steps, the most of a step above what was there before)"""
    gc.collect()
    if world.device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # what the warm-up has let go of would be taken for nothing
    before = _held(world.device)
    _forget_peak(world.device)
    built = build(shape, checkpointing=checkpointing)
    engine = _engine(built, world, accumulation=ACCUMULATION)
    plan = planned(built, shape, VISITS)
    batch = batch_of(built, shape, VISITS).to(world.device)
    for _ in range(ACCUMULATION):
        _step(engine, batch)
    gc.collect()
    standing = _held(world.device)
    _forget_peak(world.device)
    for _ in range(2 * ACCUMULATION):
        _step(engine, batch)
    peak = _peak(world.device)
    engine.close()
    return plan, peak - before, peak - standing


def measured_seconds(shape: Shape, world: World) -> dict[str, float]:
    """Milliseconds of a step of VISITS, predicted and measured."""
    built = build(shape)
    engine = _engine(built, world)
    batches = {visits: batch_of(built, shape, visits).to(world.device) for visits in (*PROBES, VISITS)}
    for batch in batches.values():
        _step(engine, batch)
    taken: dict[int, list[float]] = {visits: [] for visits in batches}
    for _ in range(REPEATS):
        for visits, batch in batches.items():
            taken[visits].append(_timed(world.device, lambda batch=batch: _step(engine, batch)))
    engine.close()
    few, more = (median(taken[visits]) for visits in PROBES)
    each = (more - few) / (PROBES[1] - PROBES[0])
    predicted = few + (VISITS - PROBES[0]) * each
    return {"predicted": 1000 * predicted, "step": 1000 * median(taken[VISITS])}


def recomputed_milliseconds(shape: Shape, world: World) -> dict[str, float]:
    """Forward and backward with a share of the layers computed again, share by share in turn."""
    models = {str(share): build(shape, checkpointing=share) for share in SHARES}
    for built in models.values():
        built.objective.to(world.device)
        built.objective.place_frozen(world.device, torch.float32)
    batch = batch_of(next(iter(models.values())), shape, VISITS).to(world.device)
    taken: dict[str, list[float]] = {name: [] for name in models}
    for number in range(1 + REPEATS):
        for name, built in models.items():
            seconds = _timed(world.device, lambda built=built: built.objective(batch).loss.backward())
            built.objective.zero_grad(set_to_none=True)
            if number:
                taken[name].append(seconds)
    return {name: 1000 * median(seconds) for name, seconds in taken.items()}


def main() -> None:
    """`seconds`, or `bytes` and the name of a shape, with a share behind it where layers are computed again."""
    what, *about = sys.argv[1:]
    world = initialize(timeout_seconds=300.0)
    answer: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "visits": VISITS,
        "probes": PROBES,
    }
    _warm_up(world)
    if what == "bytes":
        name, *share = about
        found = measured_bytes(SHAPES[name], world, checkpointing=float(share[0]) if share else None)
        answer |= dict(zip(("planned", "measured", "step"), found, strict=True))
    else:
        answer["rows"] = {name: measured_seconds(shape, world) for name, shape in SHAPES.items()}
        answer["checkpointing"] = recomputed_milliseconds(SHAPES[RECOMPUTED], world)
    print(json.dumps(answer), flush=True)
    world.close()


def _warm_up(world: World) -> None:
    """A step of one visit: libraries load at their first use what is no model's memory."""
    shape = SHAPES[RECOMPUTED]
    built = build(shape)
    engine = _engine(built, world)
    _step(engine, batch_of(built, shape, 1).to(world.device))
    engine.close()


def _engine(built: BuiltModel, world: World, *, accumulation: int = 1) -> Engine:
    resolved = resolve(
        _policy(),
        precision="fp32",
        visits=VISITS * accumulation,
        micro_visits=VISITS,
        accumulation=accumulation,
        world_size=1,
        max_grad_norm=1.0,
    )
    engine = Engine(built.objective, world=world, deepspeed_config=resolved, learning_rate=1e-5, gradient_patience=100)
    built.objective.place_frozen(world.device, torch.float32)
    return engine


def _policy() -> dict[str, Any]:
    return read_policy(REPOSITORY / "ds_configs" / f"zero{STAGE}.json")


def _step(engine: Engine, batch: Batch) -> None:
    engine.backward(engine(batch).loss)
    engine.step()


def _timed(device: torch.device, act: Callable[[], None]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _held(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes(peak=True)


if __name__ == "__main__":
    main()
    leave(0)
