"""One rank of `duoflow bench scaling`: it takes jobs as lines of JSON, and answers each with what it took.

The model is wide and hardly computes: what a step sends is what a step takes.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.bench.scaling_job import Answer, Job, Probe, sent_bytes
from trainer.config.schema import REPOSITORY
from trainer.engine.deepspeed_config import read_policy, resolve
from trainer.engine.distributed import World, initialize
from trainer.engine.engine import Engine
from trainer.engine.parameter_groups import parameter_groups
from trainer.engine.process import leave

_ROWS = 4
"""Of a micro-batch."""
_TIMEOUT_SECONDS = 300.0
_SUMS = 16
"""Numbers that the training loop adds up over ranks after each step."""


class _Output(NamedTuple):
    loss: Tensor


class _Wide(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, rows: Tensor) -> _Output:
        for layer in self.layers:
            rows = torch.tanh(layer(rows))
        return _Output(rows.square().mean())


def _answers(world: World, jobs: TextIO) -> Iterator[Any]:
    engines: dict[Job, Engine] = {}
    for line in jobs:
        asked = json.loads(line)
        if "collective" in asked:
            yield _probe(Probe(**asked), world)
            continue
        job = Job(**asked)
        kind = replace(job, steps=0)
        if kind not in engines:
            engines[kind] = _engine(job, world)
            _step(engines[kind], job, world)  # the first one makes buffers and connections
        yield _measure(engines[kind], job, world)._asdict()


def _engine(job: Job, world: World) -> Engine:
    module = _Wide(job.width, job.layers)
    config = resolve(
        read_policy(REPOSITORY / "ds_configs" / f"zero{job.stage}.json"),
        precision="fp32",
        visits=world.world_size * job.accumulation,
        micro_visits=1,
        accumulation=job.accumulation,
        world_size=world.world_size,
        max_grad_norm=1.0,
    )
    return Engine(
        module, world=world, deepspeed_config=config, learning_rate=1e-4, groups=parameter_groups(module, 0.01)
    )


def _measure(engine: Engine, job: Job, world: World) -> Answer:
    world.barrier("begin")
    before, seconds = _sent(), []
    for _ in range(job.steps):
        began = time.perf_counter()
        _step(engine, job, world)
        seconds.append(time.perf_counter() - began)
    world.barrier("count")
    width, layers = job.width, job.layers
    return Answer(seconds, (_sent() - before) / job.steps, layers * (width * width + width))


def _probe(job: Probe, world: World) -> list[float]:
    """Seconds of each, until all ranks are through."""
    whole = torch.zeros(job.elements)
    part = torch.zeros(job.elements // world.world_size)
    seconds = []
    for _ in range(job.times):
        world.barrier("probe")
        began = time.perf_counter()
        if job.collective == "reduce":
            dist.all_reduce(whole)
        else:
            dist.all_gather(list(whole.chunk(world.world_size)), part)
        took = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        seconds.append(world.max_across_ranks(took).item())
    return seconds


def _step(engine: Engine, job: Job, world: World) -> None:
    for _ in range(job.accumulation):
        engine.backward(engine(torch.ones(_ROWS, job.width)).loss)
        engine.step()
    world.sum_across_ranks([0.0] * _SUMS)


def _sent() -> int:
    with open("/proc/self/net/dev", encoding="ascii") as counters:
        return sent_bytes(counters.read())


def _own_stdout() -> TextIO:
    """Standard output for answers alone: what libraries print goes to standard error."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def main() -> None:
    """Answer jobs until standard input ends."""
    answers = _own_stdout()
    world = initialize(_TIMEOUT_SECONDS)

    def tell(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    tell({"rank": world.rank})
    for answer in _answers(world, sys.stdin):
        tell(answer)
    world.close()


if __name__ == "__main__":
    main()
    leave(0)
