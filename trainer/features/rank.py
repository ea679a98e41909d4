"""One rank of `duoflow features cache`: `-m trainer.features.rank CONFIG SPLIT DTYPE RANKS`.

RANKS is the directory in which each rank leaves its process id, and its exit code.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from shards.progress import say
from trainer.config import load_config
from trainer.engine.distributed import World
from trainer.engine.joint_work import work_together
from trainer.engine.process import leave
from trainer.engine.signals import StopRequest
from trainer.features.write import prepare, write_features


def main(arguments: Sequence[str]) -> int:
    """Write this rank's tars; returns the exit code."""
    recipe, split, dtype, ranks = arguments
    config = load_config(recipe)

    def write(world: World, stop: StopRequest) -> None:
        work = world.agree_on(lambda: prepare(config, split, dtype, world))
        write_features(
            work,
            world,
            say=lambda line: say(line, error=True) if world.rank == 0 else None,
            stopped=lambda: stop.requested,
        )

    return work_together(config.engine, Path(ranks), write)


if __name__ == "__main__":
    leave(main([word for word in sys.argv[1:] if not word.startswith("--local_rank")]))
