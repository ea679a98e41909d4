"""Ranks on this machine for work that is no training: launched, waited for, and what they ended with together."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from launch.processes.ranks import read_records
from shards.progress import say
from trainer.commands.start import launch_ranks
from trainer.config import RunConfig
from trainer.exit_codes import DONE, FAILED, STOPPED, USER_MISTAKE
from trainer.training.preflight import Machine


def work_on_ranks(module: str, arguments: Sequence[str], config: RunConfig, machine: Machine) -> int:
    """Run a module that ends with `trainer.engine.joint_work.work_together` on every device of this machine.

    Args:
        arguments: of the module; behind them it is given the directory of the ranks' records.

    Returns:
        The exit code of all ranks together.
    """
    with tempfile.TemporaryDirectory(prefix="duoflow.ranks.") as aside:
        ranks = Path(aside)
        outcome = launch_ranks(module, [*arguments, aside], config, machine, ranks)
        codes = [record.exit_code for record in read_records(ranks)]
    return STOPPED if outcome.stopped_early else exit_code(codes, machine.processes)


def exit_code(codes: Sequence[int | None], processes: int) -> int:
    """Of all ranks together: None is one that was killed."""
    if len(codes) < processes or None in codes:
        say("duoflow: a rank ended without a word; run the same command again", error=True)
        return FAILED
    return next((code for code in (USER_MISTAKE, FAILED, STOPPED) if code in codes), DONE)
