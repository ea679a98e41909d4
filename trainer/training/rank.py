"""A rank from its first line to its exit code: the run directory, agreement with the other ranks, and how it ends."""

import argparse
import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from launch.ranks import record_rank
from shards.errors import ConfigError, UserError
from trainer.build import open_split
from trainer.config import RunConfig, load_config
from trainer.config.resume_policy import check_resumable
from trainer.config.schema import check_world_size
from trainer.engine.distributed import LostRankError, World, initialize, is_known_to_all
from trainer.engine.signals import StopRequest
from trainer.reporting.progress import ConsoleHandler
from trainer.run_directory import DONE, FAILED, OCCUPIED, STOPPED, USER_MISTAKE, RunDirectory
from trainer.training.loop import Outcome, fit
from trainer.training.preflight import check_inputs, check_room
from trainer.training.setup import set_up

logger = logging.getLogger(__name__)

_SAFE_VALUE = re.compile(r"[\w@%+=:,./-]*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank; returns DESIGN's exit code and leaves it in status.json."""
    options = _parse(arguments)
    rank = int(os.environ.get("RANK", "0"))
    try:
        _check_values(options.overrides)
        config = load_config(options.recipe, options.overrides)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # all ranks of a node read one recipe
            _say(error)
        return USER_MISTAKE
    directory = RunDirectory.of(config)
    with StopRequest() as stop, contextlib.ExitStack() as locks:
        occupied = _occupy(directory, rank, locks)
        is_ours = rank == 0 and occupied is None  # only rank 0 has looked
        try:
            world = initialize(config.engine.timeout_seconds)
            world.agree_or_raise(occupied)
            is_ours = True
            world.agree_on(lambda: _appear(directory, rank))
            code = _settle(directory, world, _train(config, directory, world, stop))
            world.close()
            return code
        except UserError as error:
            code, message = USER_MISTAKE, str(error)
            if rank == 0 or not is_known_to_all(error):
                _say(error)
        except LostRankError as error:
            code, message = FAILED, str(error)
            logger.error("%s", error)
        except Exception as error:
            code, message = FAILED, f"rank {rank}: {type(error).__name__}: {error}; see {directory.logs}"
            logger.error("rank %d failed:\n%s", rank, traceback.format_exc())
        if is_ours:
            _leave_status(directory, code, message)
        return _abandon(code)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trainer.train", description="Train as one rank of a run.")
    parser.add_argument("recipe", type=Path, help="a recipe, or the config.yaml of a run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of the recipe's")
    parser.add_argument("--local_rank", type=int, help="given by some launchers; the environment is what counts")
    return parser.parse_args(arguments)


def _check_values(overrides: Sequence[str]) -> None:
    """The launcher's remote shell reads values again: beyond one node only harmless ones may pass.

    Raises:
        ConfigError: a value with other characters.
    """
    if int(os.environ.get("CROSS_SIZE", "1")) == 1:  # nodes, as DeepSpeed's launcher counts them
        return
    for override in overrides:
        if not _SAFE_VALUE.fullmatch(override):
            raise ConfigError(
                f"{override}: beyond one node a value may hold letters, digits and @%+=:,./- alone, because a remote "
                "shell reads it; write it in the recipe"
            )


def _occupy(directory: RunDirectory, rank: int, locks: contextlib.ExitStack) -> UserError | None:
    """Make a run's directory this run's own, unless who started the ranks has; what is in the way, if anything is."""
    try:
        directory.create()
        if rank == 0 and os.environ.get(OCCUPIED) != str(directory.path.resolve()):
            locks.enter_context(directory.lock())
    except UserError as error:
        return error
    return None


def _appear(directory: RunDirectory, rank: int) -> None:
    """Log, record and status, from when the directory is this run's own."""
    _log_to(directory, rank)
    record_rank(directory.ranks, rank)
    if rank == 0:
        directory.change_status("running", message="starting")


def _train(config: RunConfig, directory: RunDirectory, world: World, stop: StopRequest) -> Outcome:
    world.agree_or_raise(_fault(config, directory, world))
    run, state = set_up(config, directory, world, stop)
    try:
        return fit(run, state)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostRankError(
            f"rank {world.rank} of {world.world_size} lost the other ranks while training: {reason}; the rank that "
            "failed first has the cause in its log"
        ) from error
    finally:
        run.recorder.close()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective of DeepSpeed's has failed; NCCL's errors have a class, gloo's only their text."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _fault(config: RunConfig, directory: RunDirectory, world: World) -> UserError | None:
    """What is wrong with the recipe on this rank, before any model is loaded; rank 0 settles the run directory."""
    try:
        check_world_size(config, world.world_size)
        check_inputs(config, device_type=world.device.type)
        for name in ("train", "val"):
            if name == "train" or config.data.val is not None:
                open_split(config, name)
        check_room(config, _ranks_here(world), world.world_size)
        if world.rank == 0:
            previous = directory.read_config()
            if previous is not None:
                for difference in check_resumable(previous, config, str(directory.path)):
                    logger.info("%s; the run goes on with the new value", difference)
            directory.write_config(config)
    except UserError as error:
        return error
    return None


def _ranks_here(world: World) -> range:
    """The ranks of this machine, as the launcher counts them: deepspeed's own, or torchrun."""
    size = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")
    first = world.rank - int(os.environ.get("LOCAL_RANK", "0"))
    return range(max(first, 0), min(max(first, 0) + size, world.world_size))


def _settle(directory: RunDirectory, world: World, outcome: Outcome) -> int:
    world.barrier("finish")
    code = DONE if outcome.finished else STOPPED
    if world.rank == 0:
        state = "done" if outcome.finished else "stopped"
        directory.change_status(state, exit_code=code, message=outcome.message)
        logger.info("%s", outcome.message)
    return code


def _leave_status(directory: RunDirectory, code: int, message: str) -> None:
    """The first rank that fails says why; ranks that lost it do not write over that."""
    try:
        status = directory.read_status()
        if status is None or status.state != "failed":
            directory.change_status("failed", exit_code=code, message=message)
    except (OSError, UserError) as error:
        logger.error("%s: cannot be written (%s)", directory.status, error)


def _say(error: UserError) -> None:
    logger.error("%s", error) if logging.getLogger().handlers else print(f"duoflow: {error}", file=sys.stderr)


def _abandon(code: int) -> int:
    """Leave at once: closing process groups and loader workers can wait for ranks that are gone."""
    logging.shutdown()
    os._exit(code)


def _log_to(directory: RunDirectory, rank: int) -> None:
    """Everything to the rank's file; the console hears rank 0, and errors of all ranks."""
    file = logging.FileHandler(directory.rank_log(rank), encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = ConsoleHandler()
    console.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[file, console], force=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
