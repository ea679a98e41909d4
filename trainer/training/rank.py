"""A rank from its meeting with the others to its exit code: agreement, training, and how it ends."""

import contextlib
import faulthandler
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from launch.processes.ranks import record_end, record_rank
from shards.errors import UserError
from trainer.build import open_split
from trainer.config import RunConfig
from trainer.config.resume_policy import check_resumable
from trainer.config.schema import check_world_size
from trainer.engine.distributed import World, initialize, is_known_to_all
from trainer.engine.signals import StopRequest
from trainer.engine.waiting import LostRankError, StoppedError, first_line
from trainer.exit_codes import DONE, FAILED, STOPPED, USER_MISTAKE
from trainer.reporting.consoles import console_handlers
from trainer.run_directory import RunDirectory
from trainer.training.agreement import agree_on_start, check_shards
from trainer.training.arrival import Arrival, arrive, stopped_early
from trainer.training.ending import leave_status, say
from trainer.training.loop import Outcome, fit
from trainer.training.out_of_memory import explained, start_explained
from trainer.training.preflight import Past, check_inputs, check_room
from trainer.training.run_identity import agree_on_run
from trainer.training.setup import set_up

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank; returns DESIGN's exit code and leaves it in status.json."""
    return arrive(arguments, lambda: train)


def train(arrival: Arrival, stop: StopRequest) -> int:
    """Meet the other ranks, agree with them, train; returns DESIGN's exit code and leaves it in status.json."""
    config, directory, place, occupied, began = arrival
    ours = place.rank == 0 and occupied is None  # only rank 0 has looked
    world = None
    try:
        engine = config.engine
        world = initialize(
            engine.timeout_seconds,
            place=place,
            start_timeout_seconds=engine.start_timeout_seconds,
            heartbeat_seconds=engine.heartbeat_seconds,
            stop=stop,
        )
        world.agree_or_raise(occupied)
        ours = True
        world.agree_on(lambda: _appear(directory, world))
        world.watch(
            dump_stacks=partial(_dump_stacks, directory, world), on_lost=partial(_give_up, directory, place.rank, began)
        )
        code = _settle(directory, world, _train(config, directory, world, stop))
        world.close()
        _leave_word(directory, place.rank, code)
        return code
    except StoppedError as stopped:
        return _abandon(directory, place.rank, stopped_early(directory, f"{stopped}", ours=ours, began=began))
    except UserError as error:
        code, message, cause = USER_MISTAKE, str(error), None if is_known_to_all(error) else f"{place}: {error}"
        if place.rank == 0 or not is_known_to_all(error):
            say(error)
    except LostRankError as error:
        code, message, cause = FAILED, str(error), str(error)
        say(error)
    except Exception as error:
        code, message = FAILED, f"{place}: {type(error).__name__}: {error}; see {directory.logs}"
        cause = message
        logger.error("%s failed:\n%s", place, traceback.format_exc())
    leave_status(directory, "failed", code, message, ours=ours, since=began)
    if world is not None:
        world.part(cause)
    return _abandon(directory, place.rank, code)


def _appear(directory: RunDirectory, world: World) -> None:
    """Log, record and status, from when the directory is this run's own."""
    _log_to(directory, world.rank)
    record_rank(directory.ranks, world.rank)
    if world.rank == 0:
        directory.change_status("running", message="starting")


def _train(config: RunConfig, directory: RunDirectory, world: World, stop: StopRequest) -> Outcome:
    world.at("checking the start")
    agree_on_start(config, world)
    known = agree_on_run(directory, world)
    world.agree_or_raise(_fault(config, directory, world, known.past))
    world.agree_on(lambda: _keep_config(config, directory, world))
    try:
        return _fit(config, directory, world, stop, known.run)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise LostRankError(
            f"{world.name} lost the other ranks while training: {world.who_is_lost()}; {first_line(error)}"
        ) from error


def _fit(config: RunConfig, directory: RunDirectory, world: World, stop: StopRequest, run_id: str) -> Outcome:
    run, state = start_explained(lambda: set_up(config, directory, world, stop, run_id=run_id))
    try:
        return explained(run, lambda: fit(run, state))
    finally:
        if run.profiler is not None:
            run.profiler.close()
        run.recorder.close()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective of DeepSpeed's has failed; NCCL's errors have a class, gloo's only their text."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _fault(config: RunConfig, directory: RunDirectory, world: World, past: Past | None) -> UserError | None:
    """What is wrong with the recipe on this rank, before any model is loaded; rank 0 settles the run directory."""
    try:
        check_world_size(config, world.world_size)
        check_inputs(config, device_type=world.device.type, past=past)
        for name in ("train", "val"):
            if name == "train" or config.data.val is not None:
                split = open_split(config, name)
                check_shards(split.index, f"data.{name}", split.directory)
        check_room(config, world.ranks_here, world.world_size)
        if world.rank == 0:
            previous = directory.read_config()
            if previous is not None:
                for difference in check_resumable(previous, config, str(directory.path)):
                    logger.info("%s; the run goes on with the new value", difference)
            directory.write_config(config)
    except UserError as error:
        return error
    return None


def _keep_config(config: RunConfig, directory: RunDirectory, world: World) -> None:
    """Leave the recipe on this host too, where its disk is not that of rank 0, which has accepted it."""
    if world.leads_host and world.rank != 0 and directory.read_config() != config:
        directory.write_config(config)


def _settle(directory: RunDirectory, world: World, outcome: Outcome) -> int:
    world.barrier("finish")
    code = DONE if outcome.finished else STOPPED
    if world.rank == 0:
        state = "done" if outcome.finished else "stopped"
        directory.change_status(state, exit_code=code, message=outcome.message)
        logger.info("%s", outcome.message)
    return code


def _dump_stacks(directory: RunDirectory, world: World) -> None:
    """The stacks of all threads at the end of this rank's log: where it hangs, or what it waits for."""
    with contextlib.suppress(OSError), directory.rank_log(world.rank).open("a", encoding="utf-8") as log:
        log.write(f"{world.name}: stacks of all threads\n")
        log.flush()
        faulthandler.dump_traceback(log, all_threads=True)


def _give_up(directory: RunDirectory, rank: int, began: float, message: str) -> None:
    """The end of a rank whose main thread waits for one that is lost; called from another thread."""
    say(message)
    leave_status(directory, "failed", FAILED, message, ours=True, since=began)
    _abandon(directory, rank, FAILED)


def _leave_word(directory: RunDirectory, rank: int, code: int) -> None:
    """Beside this rank's record: one without it was killed."""
    try:
        record_end(directory.ranks, rank, code)
    except OSError as error:
        logger.error("%s: cannot be written (%s)", directory.ranks, error)


def _abandon(directory: RunDirectory, rank: int, code: int) -> int:
    """Leave at once: closing process groups and loader workers can wait for ranks that are gone."""
    _leave_word(directory, rank, code)
    logging.shutdown()
    os._exit(code)


class RankLog(logging.FileHandler):
    """A rank's file. A disk that takes no more costs what belongs there, and one line."""

    def __init__(self, path: Path, encoding: str) -> None:
        super().__init__(path, encoding=encoding)
        self._failing = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failing:
            self._failing = True
            say(f"{self.baseFilename}: cannot be written ({error}); training goes on without it")


def _log_to(directory: RunDirectory, rank: int) -> None:
    """Everything to the rank's file; the console hears rank 0, and stderr errors of all ranks."""
    file = RankLog(directory.rank_log(rank), encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[file, *console_handlers(rank)], force=True)
    # DeepSpeed calls what torch has renamed, and torch says so at every step; nobody who trains can change that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
