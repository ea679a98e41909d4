"""Rank 1 is late, then gone; every rank writes to OUT/rankN.json what it was told about that."""

import argparse
import dataclasses
import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.engine_worker import build, train_step
from trainer.engine.distributed import World, initialize
from trainer.engine.engine import Engine
from trainer.engine.waiting import LostRankError

TIMEOUT_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    # The launcher ends all ranks once one has failed; here they are to find out for themselves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    world = initialize(timeout_seconds=60)
    patient = dataclasses.replace(world, _group=dist.new_group(backend="gloo"))
    hasty = dataclasses.replace(
        world,
        timeout_seconds=TIMEOUT_SECONDS,
        _group=dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_SECONDS)),
    )
    before = set(dist.distributed_c10d._world.pg_map)
    engine = build(hasty, stage=1)
    told = {"timeouts": [timeout_of(group) for group in dist.distributed_c10d._world.pg_map if group not in before]}
    if world.rank == 0:
        told["step"] = what_a_step_raises(engine, hasty)
    else:
        time.sleep(3 * TIMEOUT_SECONDS)
    told["late"] = what_is_said(hasty, "finish the epoch")
    patient.barrier("write what was said")
    (out / f"rank{world.rank}.json").write_text(json.dumps(told))
    if world.rank == 1:
        os._exit(7)
    told["gone"] = what_is_said(patient, "save step 3")
    (out / f"rank{world.rank}.json").write_text(json.dumps(told))


def timeout_of(group: dist.ProcessGroup) -> float:
    """In seconds."""
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def what_a_step_raises(engine: Engine, world: World) -> str | None:
    try:
        train_step(engine, world, 0)
    except RuntimeError as error:
        return str(error)
    return None


def what_is_said(world: World, what: str) -> str | None:
    try:
        world.barrier(what)
    except LostRankError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
