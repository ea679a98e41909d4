"""What it costs many ranks to agree on code, packages, recipe and data before the first step.

    python -m benchmarks.agreement --ranks 64 [--json F]

The ranks are forked from a process that has imported torch, meet over gloo on this machine and share its cores: the
wall time is an upper bound for ranks that have cores of their own, the processor time is what each of them computes.
"""

import argparse
import json
import os
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median
from typing import NamedTuple

from launch.network import free_port
from shards.atomic import check_writable
from tests.runs import write_shards
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import initialize
from trainer.engine.process import Place
from trainer.training.agreement import agree_on_start

RECIPE = Path("recipes/gqa_blip_base.yaml")
START_SECONDS = 300.0


class Cost(NamedTuple):
    """Of one rank, in seconds."""

    wall: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to this file as well")
    arguments = parser.parse_args()
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    with tempfile.TemporaryDirectory() as scratch:
        data = [f"data.{split}={path}" for split, path in write_shards(Path(scratch)).items()]
        costs = measure(load_config(RECIPE, data), arguments.ranks, arguments.rounds)
    slowest = [max(cost.wall for cost in costs_of_round) for costs_of_round in zip(*costs, strict=True)]
    processor = median(cost.processor for of_rank in costs for cost in of_rank)
    cores = len(os.sched_getaffinity(0))
    print(f"{arguments.ranks} ranks on {cores} cores, until the last one is through, by round:")
    print(", ".join(f"{seconds:.2f} s" for seconds in slowest) + f"; {processor:.3f} s of processor a rank")
    if arguments.json is not None:
        figures = {"ranks": arguments.ranks, "cores": cores, "wall_seconds": slowest, "processor_seconds": processor}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(config: RunConfig, ranks: int, rounds: int) -> list[list[Cost]]:
    """The costs of each round, by rank."""
    port = free_port()
    children = []
    for rank in range(ranks):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(reading)
            code = 1
            try:
                costs = _rank(config, Place(rank, rank, ranks, "127.0.0.1", port), rounds)
                os.write(writing, json.dumps(costs).encode())
                code = 0
            except BaseException:  # this process ends below, whatever it was
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        children.append(reading)
    answers = []
    for reading in children:
        with os.fdopen(reading, "rb") as pipe:
            answers.append([Cost(*cost) for cost in json.loads(pipe.read())])
        os.wait()
    return answers


def _rank(config: RunConfig, place: Place, rounds: int) -> list[Cost]:
    world = initialize(START_SECONDS, place=place, start_timeout_seconds=START_SECONDS)
    costs = []
    for _ in range(rounds):
        world.barrier("begin")
        wall, processor = time.monotonic(), time.process_time()
        agree_on_start(config, world)
        costs.append(Cost(time.monotonic() - wall, time.process_time() - processor))
    world.barrier("end")
    world.close()
    return costs


if __name__ == "__main__":
    main()
