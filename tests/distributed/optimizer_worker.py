"""Every optimizer under the engine against timm's own loop, resumed and moved, on one rank: OUT/WORLD.rankN.json."""

import argparse
import json
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from trainer.engine.deepspeed_config import resolve
from trainer.engine.distributed import World, initialize
from trainer.engine.engine import Engine
from trainer.engine.optimizers import COUNTS_BY_GROUP, ELEMENT_WISE, WHOLE_PARAMETERS, OptimizerChoice
from trainer.engine.parameter_groups import parameter_groups
from trainer.engine.process import leave
from trainer.engine.state_file import EngineState, read_checkpoint
from trainer.training.checkpoints import Checkpoints

STEPS, MIDDLE = 20, 10
PEAK, DECAY = 0.01, 0.1
IN_BF16 = ("adopt", "madgrad", "lion", "nadam")
IN_BF16_WHOLE = ("lamb", "muon", "adafactor", "novograd")
LR_SCALES = {"first.weight": 0.25, "first.bias": 0.25, "second.weight": 0.5}
"""The others have all of it."""


class Output(NamedTuple):
    loss: Tensor


class Small(nn.Module):
    """Matrices that are large enough to be factored, vectors, a filter and a number."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(18, 20), nn.LayerNorm(20), nn.Linear(20, 17)
        self.filter, self.scale = nn.Conv1d(3, 5, 4), nn.Parameter(torch.tensor([0.5]))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Output:
        features, signal = (part.to(self.scale.dtype) for part in batch)
        hidden = self.second(self.norm(torch.tanh(self.first(features))))
        return Output((self.scale * hidden).float().square().mean() + self.filter(signal).float().square().mean())


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    """The same on every rank, so that an average over ranks changes no bit."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(7, 18, generator=generator), torch.randn(2, 3, 9, generator=generator)


def rate(step: int) -> float:
    return PEAK / (1 + step / 10)


def build(
    world: World,
    stage: int,
    name: str,
    *,
    seed: int = 1,
    precision: str = "fp32",
    lr_scales: dict[str, float] | None = None,
) -> Engine:
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # Sub-groups of a few parameters, some of which stay whole.
        zero |= {"stage3_param_persistence_threshold": 30, "sub_group_size": 300}
    sizes = {"visits": world.world_size, "micro_visits": 1, "accumulation": 1, "world_size": world.world_size}
    module = Small(seed)
    scales = None if lr_scales is None else {n: lr_scales.get(n, 1.0) for n, _ in module.named_parameters()}
    return Engine(
        module,
        world=world,
        deepspeed_config=resolve({"zero_optimization": zero}, precision=precision, max_grad_norm=None, **sizes),
        learning_rate=PEAK,
        optimizer=OptimizerChoice(name=name),
        groups=parameter_groups(module, DECAY, scales),
    )


def train(engine: Engine, first: int, last: int) -> None:
    for step in range(first, last):
        engine.set_learning_rate(rate(step))
        engine.backward(engine(batch_of(step)).loss)
        update = engine.step()
        assert update is not None
        assert update.applied


@cache
def reference_of(name: str) -> dict[str, Tensor]:
    return by_timm(name)


def by_timm(name: str, lr_scales: dict[str, float] | None = None) -> dict[str, Tensor]:
    """timm's own loop in plain torch."""
    module = Small()
    if lr_scales is None:
        optimizer = create_optimizer_v2(module, name, lr=PEAK, weight_decay=DECAY)
    else:
        scales = {n: lr_scales.get(n, 1.0) for n, _ in module.named_parameters()}
        optimizer = create_optimizer_v2(parameter_groups(module, DECAY, scales), name, lr=PEAK)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        module(batch_of(step)).loss.backward()
        optimizer.step()
    return dict(module.named_parameters())


def distance(state: EngineState | None, reference: dict[str, Tensor]) -> float | None:
    """The largest difference of an element, relative to the parameter's largest where that is more than 1."""
    if state is None:
        return None
    return max(
        ((state.parameters[name] - value).abs().max() / value.abs().max().clamp(min=1.0)).item()
        for name, value in reference.items()
    )


def bits(state: EngineState | None) -> dict[str, str] | None:
    """Every bit of a state as text."""
    if state is None:
        return None
    groups = [("", state.parameters), *state.moments.items()]
    return {
        f"{kind}.{name}": f"{tensor.dtype} {tensor.view(torch.uint8).numpy().tobytes().hex()}"
        if tensor.ndim
        else f"{tensor.dtype} {tensor.item()!r}"
        for kind, of in groups
        for name, tensor in of.items()
    } | {"step": str(state.optimizer_step)}


def share(world: World, state: EngineState | None, out: Path, name: str) -> EngineState:
    """A state through its file, which rank 0 reads for all."""
    checkpoints = Checkpoints(out / name, world)
    return checkpoints.load(checkpoints.save("state", state, {}))[0]


def trial(world: World, stage: int, name: str, out: Path, *, precision: str = "fp32") -> dict[str, Any]:
    """A run in one piece, the same one interrupted, and the distance from timm's."""
    tag = f"{name}-{stage}-{precision}-{world.world_size}"
    engine = build(world, stage, name, precision=precision)
    # Before the first update most keep nothing; one stage is enough for what is there then.
    start = share(world, engine.export_state(), out, f"{tag}-start") if stage < 2 else None
    train(engine, 0, MIDDLE)
    middle = share(world, engine.export_state(), out, tag)
    train(engine, MIDDLE, STEPS)
    final = engine.export_state()
    engine.close()

    resumed = build(world, stage, name, seed=99, precision=precision)
    resumed.import_state(middle)
    again = bits(resumed.export_state())
    train(resumed, MIDDLE, STEPS)
    found = resumed.export_state()
    anew = None
    if start is not None:
        resumed.import_state(start)
        anew = bits(resumed.export_state())
    resumed.close()
    return {
        "distance": distance(final, reference_of(name)) if precision == "fp32" else None,
        "way": distance(final, dict(Small().named_parameters())),
        "resumes": bits(final) == bits(found),
        "round trip": world.rank != 0 or (again == bits(middle) and anew == bits(start)),
        "kept": sorted(middle.moments),
    }


def moved(world: World, out: Path, name: str, stage: int) -> float | None:
    """Continue at another stage, and in another world, what two ranks began at stage 1."""
    engine = build(world, stage, name, seed=99)
    engine.import_state(read_checkpoint(out / f"{name}-1-fp32-2" / "state")[0])
    train(engine, MIDDLE, STEPS)
    state = engine.export_state()
    engine.close()
    return distance(state, reference_of(name))


def scaled(world: World, stage: int) -> float | None:
    """Groups with learning rates of their own."""
    engine = build(world, stage, "adamw", lr_scales=LR_SCALES)
    train(engine, 0, STEPS)
    state = engine.export_state()
    engine.close()
    return distance(state, by_timm("adamw", LR_SCALES))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="some optimizers instead of all")
    arguments = parser.parse_args()
    os.fsync = lambda _: None  # hundreds of checkpoints, none of which has to survive this machine
    world, out = initialize(timeout_seconds=60), arguments.out
    chosen = arguments.names or [*ELEMENT_WISE, *WHOLE_PARAMETERS]
    flat = [name for name in ELEMENT_WISE if name in chosen]
    result: dict[str, Any] = {}
    if world.world_size == 1:
        result["trials"] = {f"{name} 0": trial(world, 0, name, out) for name in chosen}
        halves = [(name, 0) for name in (*IN_BF16, *IN_BF16_WHOLE)]
        stages = (0,)
    else:
        pairs = [(name, stage) for name in flat for stage in (1, 2, 3) if _offered(name, stage)]
        result["trials"] = {f"{name} {stage}": trial(world, stage, name, out) for name, stage in pairs}
        halves = [(name, 2) for name in IN_BF16]
        stages = (3,)
    result["bf16"] = {
        f"{name} {stage}": trial(world, stage, name, out, precision="bf16") for name, stage in halves if name in chosen
    }
    result["moved"] = {
        f"{name} {stage}": moved(world, out, name, stage) for name in flat for stage in stages if _offered(name, stage)
    }
    result["scaled"] = {stage: scaled(world, stage) for stage in (0, 1, 2, 3)}
    (out / f"{world.world_size}.rank{world.rank}.json").write_text(json.dumps(result))
    world.close()


def _offered(name: str, stage: int) -> bool:
    return stage < 3 or name not in COUNTS_BY_GROUP


if __name__ == "__main__":
    main()
    leave(0)
