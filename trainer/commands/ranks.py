"""Ranks on this machine for work that is no training: launched, waited for, and what they ended with together."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from launch.processes.ranks import read_records
from shards.progress import say
from trainer.commands.start import deaths_of, launch_ranks
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
        if outcome.stopped_early:
            return STOPPED
        codes = [record.exit_code for record in read_records(ranks)]
        if len(codes) < machine.processes or None in codes:
            say(f"duoflow: {deaths_of(ranks, outcome)}; run the same command again", error=True)
            return FAILED
    return next((code for code in (USER_MISTAKE, FAILED, STOPPED) if code in codes), DONE)
