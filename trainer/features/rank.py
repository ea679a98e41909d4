"""One rank of `duoflow features cache`: `-m trainer.features.rank CONFIG SPLIT DTYPE RANKS`.

RANKS is the directory in which each rank leaves its process id, and its exit code.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.processes.ranks import record_end, record_rank
from shards.errors import UserError
from shards.progress import say
from trainer.config import load_config
from trainer.engine.distributed import initialize, is_known_to_all
from trainer.engine.process import leave
from trainer.engine.signals import StopRequest
from trainer.engine.waiting import LostRankError, StoppedError
from trainer.exit_codes import DONE, FAILED, STOPPED, USER_MISTAKE
from trainer.features.write import Stopped, prepare, write_features


def main(arguments: Sequence[str]) -> int:
    """Write this rank's tars; returns the exit code, which stands in its record as well."""
    recipe, split, dtype, ranks = arguments
    config = load_config(recipe)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    with StopRequest() as stop:
        rank, code = 0, FAILED
        try:
            engine = config.engine
            world = initialize(
                engine.timeout_seconds,
                start_timeout_seconds=engine.start_timeout_seconds,
                heartbeat_seconds=engine.heartbeat_seconds,
                stop=stop,
            )
            rank = world.rank
            record_rank(Path(ranks), rank)
            work = world.agree_on(lambda: prepare(config, split, dtype, world))
            write_features(
                work,
                world,
                say=lambda line: say(line, error=True) if rank == 0 else None,
                stopped=lambda: stop.requested,
            )
            world.close()
            code = DONE
        except (Stopped, StoppedError):
            code = STOPPED
        except UserError as error:
            code = USER_MISTAKE
            if rank == 0 or not is_known_to_all(error):
                say(f"duoflow: {error}", error=True)
        except LostRankError as error:
            say(f"duoflow: {error}", error=True)
        record_end(Path(ranks), rank, code)
    return code


if __name__ == "__main__":
    leave(main([word for word in sys.argv[1:] if not word.startswith("--local_rank")]))
