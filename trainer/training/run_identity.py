"""Which run a directory belongs to: an id that rank 0 draws once, kept on every host's disk and in every checkpoint.

runs/NAME/identity.json appears with the first checkpoint. So a directory that has it and no checkpoint has lost them,
or never held them: it is that of a host on which rank 0 did not run.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shards.errors import ConfigError, DataError, UserError
from trainer.engine.distributed import World, known_to_all
from trainer.run_directory import RunDirectory, write_json
from trainer.training.preflight import Past, check_not_lost, past_of


class Held(NamedTuple):
    """What a rank finds in its run directory."""

    host: str
    run: str | None = None
    """The id of the run there; None where there is none, or one of the time before ids."""
    step: int | None = None
    """Of the newest checkpoint."""


class Identity(NamedTuple):
    """What all ranks know of the run that they start."""

    run: str
    past: Past | None
    """The last checkpoint, as rank 0 sees it; None where the run starts anew."""


def agree_on_run(directory: RunDirectory, world: World) -> Identity:
    """Compare the run directories of all ranks, and decide by rank 0's whether the run goes on; collective.

    Raises:
        UserError: on all ranks, if they belong to different runs, or if the checkpoints are not where rank 0 is.
    """
    past = past_of(directory)
    kept = world.agree_on(lambda: read_id(directory))
    own = Held(world.name, kept, None) if past is None else Held(world.name, kept or past.run, past.step)
    everything = world.gather_text(json.dumps(own))
    verdict = None
    if everything is not None:
        held = [Held(*json.loads(text)) for text in everything]
        try:
            check_held(held, str(directory.path))
            check_not_lost(directory)
            verdict = {"run": held[0].run or secrets.token_hex(8), "past": past}
        except (ConfigError, DataError) as error:
            verdict = {"refused": str(error)}
    verdict = json.loads(world.broadcast_text(None if verdict is None else json.dumps(verdict)))
    if "refused" in verdict:
        raise known_to_all(ConfigError(verdict["refused"]))
    return Identity(verdict["run"], None if verdict["past"] is None else Past(*verdict["past"]))


def check_held(held: Sequence[Held], path: str) -> None:
    """Whether the run directories of all ranks, by rank, can be those of one run; pure.

    Raises:
        ConfigError: names the hosts, and the way out.
    """
    first = held[0]
    found = next((other for other in held if other.step is not None), None)
    if first.step is None and found is not None:
        raise ConfigError(
            f"{path}: {first.host} has no checkpoint, and {found.host} has one of step {found.step}: start with rank 0 "
            "on that host (the first of the hostfile), or move that directory aside there and start over with --fresh"
        )
    for other in held:
        if other.run is not None and first.run is not None and other.run != first.run:
            raise ConfigError(
                f"{path}: {first.host} has run {first.run}, and {other.host} has another one, {other.run}; give this "
                "run another run.name, or move the directory of the wrong one aside"
            )
        if other.run is not None and first.run is None and first.step is None:
            raise ConfigError(
                f"{path}: {first.host} has no run yet, and {other.host} has been part of run {other.run}, whose "
                "checkpoints are on neither: start with rank 0 on the host that has them, or move that directory aside "
                "there and start over with --fresh"
            )


def read_id(directory: RunDirectory) -> str | None:
    """The id of the run in a directory; None if it has none.

    Raises:
        DataError: the file is damaged.
    """
    try:
        found: Mapping[str, str] = json.loads(directory.identity.read_bytes())
        return str(found["run"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{directory.identity}: damaged; start over with --fresh, or remove this file") from None


def keep_id(directory: RunDirectory, world: World, run: str) -> None:
    """Leave the run's id on the disk of this host, once there is a checkpoint.

    Raises:
        UserError: it cannot be written.
    """
    if world.leads_host and run and read_id(directory) != run:
        try:
            write_json(directory.identity, {"run": run})
        except OSError as error:
            raise UserError(
                f"{directory.identity}: cannot be written ({error}); free some space on this disk"
            ) from None
