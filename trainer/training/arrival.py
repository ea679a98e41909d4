"""A rank until it imports torch: its recipe, its place among the ranks, its run directory, and the way to the others.

What is wrong with any of these is said within a second, and a stop signal is heard from the first line on.
"""

import argparse
import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from launch.processes.ranks import live_ranks
from shards.errors import ConfigError, UserError
from trainer.config import RunConfig, load_config
from trainer.engine.addresses import check_meeting_place
from trainer.engine.process import Place, read_place
from trainer.engine.signals import StopRequest
from trainer.engine.waiting import StoppedError, wait_for
from trainer.exit_codes import STOPPED, USER_MISTAKE
from trainer.run_directory import OCCUPIED, RunDirectory
from trainer.training.ending import leave_status, say

_SAFE_VALUE = re.compile(r"[\w@%+=:,./-]*")


class Arrival(NamedTuple):
    """A rank that is ready to meet the others."""

    config: RunConfig
    directory: RunDirectory
    place: Place
    occupied: UserError | None
    """What keeps this rank out of the run directory, if anything does: all ranks should hear of it."""
    began: float
    """In seconds since 1970."""


Train = Callable[[Arrival, StopRequest], int]
"""Goes on from here; returns the exit code."""


def arrive(arguments: Sequence[str] | None, load: Callable[[], Train]) -> int:
    """Prepare this process, let it train as one rank, and return DESIGN's exit code, which status.json has as well.

    Args:
        arguments: of the command line; None takes this process's.
        load: imports torch and what else training needs, which takes seconds, and from a cold disk a minute.
    """
    began = time.time()
    # Before anybody imports torch: its retries while ranks arrive are no news for a user.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    options = _parse(arguments)
    with StopRequest() as stop, contextlib.ExitStack() as locks:
        try:
            _check_values(options.overrides)
            config = load_config(options.recipe, options.overrides)
            place = read_place(os.environ)
        except UserError as error:
            if (
                os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
            ):  # all ranks of a node read one recipe
                say(error)
            return USER_MISTAKE
        directory = RunDirectory.of(config)
        occupied = _occupy(directory, place, locks)
        ours = place.rank == 0 and occupied is None  # only rank 0 has looked
        try:
            check_meeting_place(place, seconds=config.engine.start_timeout_seconds, stop=stop)
            train = wait_for(load, "imports", deadline=math.inf, stop=stop)
        except UserError as error:
            say(error)
            leave_status(directory, "failed", USER_MISTAKE, str(error), ours=ours, since=began)
            return USER_MISTAKE
        except StoppedError as stopped:
            return stopped_early(directory, f"{stopped}", ours=ours, began=began)
        return train(Arrival(config, directory, place, occupied, began), stop)


def stopped_early(directory: RunDirectory, reason: str, *, ours: bool, began: float) -> int:
    """The exit code of a rank that was asked to stop before the ranks had met."""
    message = f"stopped by {reason} before the ranks had met; run the same command again"
    say(message)
    leave_status(directory, "stopped", STOPPED, message, ours=ours, since=began)
    return STOPPED


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


def _occupy(directory: RunDirectory, place: Place, locks: contextlib.ExitStack) -> UserError | None:
    """Make a run's directory this run's own, unless who started the ranks has; what is in the way, if anything is."""
    try:
        directory.create()
        if os.environ.get(OCCUPIED) == str(directory.path.resolve()):
            return None
        if place.rank == 0:
            locks.enter_context(directory.lock())
            directory.change_status("running", message="starting")
        elif place.local_rank == 0 and (running := live_ranks(directory.ranks)):
            raise UserError(
                f"{directory.path}: processes {', '.join(map(str, running))} of another start are training here; stop "
                "them (kill -TERM, and they save) or give this run another run.name"
            )
    except UserError as error:
        return error
    return None
