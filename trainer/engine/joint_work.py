"""A rank that works with others and does not train: from its meeting with them to its exit code."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from launch.processes.ranks import record_end, record_rank
from shards.errors import UserError
from shards.progress import say
from trainer.engine.distributed import World, initialize, is_known_to_all
from trainer.engine.signals import StopRequest
from trainer.engine.waiting import LostRankError, StoppedError
from trainer.exit_codes import DONE, FAILED, STOPPED, USER_MISTAKE


class Patience(Protocol):
    """How long ranks wait for each other: `engine` of a recipe."""

    timeout_seconds: int
    start_timeout_seconds: int
    heartbeat_seconds: float


def work_together(patience: Patience, ranks: Path, work: Callable[[World, StopRequest], None]) -> int:
    """Meet the other ranks, work, and leave; returns the exit code, which stands in this rank's record as well.

    Args:
        ranks: the directory in which each rank leaves its process id, and its exit code.
        work: raises StoppedError, on all ranks, if a signal on one of them ends it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    with StopRequest() as stop:
        rank, code = 0, FAILED
        try:
            world = initialize(
                patience.timeout_seconds,
                start_timeout_seconds=patience.start_timeout_seconds,
                heartbeat_seconds=patience.heartbeat_seconds,
                stop=stop,
            )
            rank = world.rank
            record_rank(ranks, rank)
            work(world, stop)
            world.close()
            code = DONE
        except StoppedError:
            code = STOPPED
        except UserError as error:
            code = USER_MISTAKE
            if rank == 0 or not is_known_to_all(error):
                say(f"duoflow: {error}", error=True)
        except LostRankError as error:
            say(f"duoflow: {error}", error=True)
        record_end(ranks, rank, code)
    return code
