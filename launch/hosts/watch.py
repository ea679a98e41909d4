"""What is alive of a run, on whatever hosts: its ranks and its attendant, looked up at once and signalled."""

import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from launch.hosts.remote_hosts import ask_hosts
from launch.processes.ranks import (
    Process,
    RankRecord,
    damaged_records,
    read_attendant,
    read_records,
    runs_here,
    send_exactly,
)

Life = Literal["alive", "gone", "unknown"]


class RankView(NamedTuple):
    """A rank and whether it is alive."""

    record: RankRecord
    life: Life


class Census(NamedTuple):
    """What is known of a run's processes at one moment."""

    ranks: tuple[RankView, ...]
    attendant: Process | None
    """None if it left as it should, or never was."""
    attendant_life: Life
    """ "gone" without one."""
    unreachable: tuple[tuple[str, str], ...]
    """Hosts that did not answer, each with the reason."""
    damaged: tuple[str, ...]
    """Names of records that say nothing."""

    @property
    def live_ranks(self) -> tuple[Process, ...]:
        return tuple(view.record.process for view in self.ranks if view.life == "alive")

    @property
    def alive(self) -> tuple[Process, ...]:
        """Ranks, then the attendant."""
        attendant = (self.attendant,) if self.attendant is not None and self.attendant_life == "alive" else ()
        return (*self.live_ranks, *attendant)

    def without(self, process: Process) -> "Census":
        """The same without an attendant that is this process."""
        return self._replace(attendant=None, attendant_life="gone") if self.attendant == process else self

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left, for certain."""
        return not self.alive and not self.is_unknown

    @property
    def is_unknown(self) -> bool:
        """Whether something may be alive on a host that does not answer."""
        return self.attendant_life == "unknown" or any(view.life == "unknown" for view in self.ranks)

    @property
    def has_orphans(self) -> bool:
        """Whether ranks have outlived an attendant that did not leave as it should."""
        return bool(self.live_ranks) and self.attendant is not None and self.attendant_life == "gone"


def take_census(directory: Path, *, ask_others: bool = True) -> Census:
    """Look every recorded process up on its own host; processes that have left a last word are not looked up.

    Args:
        directory: where the run's ranks leave their records.
        ask_others: False leaves ranks of other hosts unknown, and costs nothing.
    """
    records = read_records(directory)
    attendant = read_attendant(directory)
    wanted = [record.process for record in records if record.exit_code is None]
    wanted += [] if attendant is None else [attendant.process]
    own = socket.gethostname()
    elsewhere = [process for process in wanted if process.host != own]
    answers = ask_hosts(elsewhere) if ask_others else {}

    def life(process: Process) -> Life:
        if process.host == own:
            return "alive" if runs_here(process) else "gone"
        answer = answers.get(process.host)
        if answer is None or answer.fault is not None or process.started is None:
            return "unknown"
        return "alive" if process.pid in answer.alive else "gone"

    views = (RankView(record, "gone" if record.exit_code is not None else life(record.process)) for record in records)
    return Census(
        tuple(views),
        None if attendant is None else attendant.process,
        "gone" if attendant is None else life(attendant.process),
        tuple((host, answer.fault) for host, answer in answers.items() if answer.fault is not None),
        tuple(damaged_records(directory)),
    )


def signal_processes(processes: Sequence[Process], number: signal.Signals) -> list[str]:
    """Signal processes on their hosts, and no other that has got the id of one that is gone.

    Returns:
        A line for each host where that was not possible; a process that has just left is no fault.
    """
    own = socket.gethostname()
    faults = []
    try:
        send_exactly(number, [process for process in processes if process.host == own])
    except PermissionError:
        faults.append(f"{own}: the processes belong to another user")
    answers = ask_hosts([process for process in processes if process.host != own], number)
    return faults + [f"{host}: {answer.fault}" for host, answer in answers.items() if answer.fault is not None]
