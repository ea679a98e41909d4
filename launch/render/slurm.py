"""`launch/slurm.sbatch` for one recipe: its `#SBATCH` lines and its arguments filled in, nothing else changed."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from launch.plan.words import LaunchFault

SCRIPT = Path(__file__).parents[1] / "slurm.sbatch"

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TIME = re.compile(r"([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}")


class SlurmOptions(NamedTuple):
    """What a job asks for."""

    name: str
    nodes: int
    gpus_per_node: int
    """A task each; 0 is one task per node on the CPU."""
    time: str | None = None
    """As sbatch reads it, such as 12:00:00 or 2-00:00:00; None leaves the script's."""
    partition: str | None = None
    variant: Literal["srun", "hostfile"] = "srun"


def sbatch_script(options: SlurmOptions, arguments: Sequence[str], *, python: str) -> str:
    """The text to give to sbatch.

    Args:
        arguments: recipe and overrides.
        python: interpreter that has DuoFlow.

    Raises:
        LaunchFault: an option that sbatch would read as something else.
    """
    _check(options)
    gpus = options.gpus_per_node
    directives = {
        "job-name": options.name,
        "nodes": str(options.nodes),
        "ntasks-per-node": str(max(1, gpus)),
        "gpus-per-node": str(gpus) if gpus else None,
        "time": options.time,
        "partition": options.partition,
        "signal": "B:TERM@300" if options.variant == "hostfile" else None,
    }
    dropped = {"gpus-per-node"} if gpus == 0 else set()
    lines = [
        "set -uo pipefail",
        "",
        "# For `duoflow launch slurm`:",
        f"set -- {shlex.join(arguments)}",
        f"export DUOFLOW_PYTHON={shlex.quote(python)}",
        f"export DUOFLOW_VARIANT={options.variant}",
        *(["export DS_ACCELERATOR=cpu"] if gpus == 0 else []),
    ]
    text = _with_directives(SCRIPT.read_text(encoding="utf-8"), directives, dropped)
    return text.replace("set -uo pipefail\n", "\n".join(lines) + "\n", 1)


def _with_directives(text: str, directives: dict[str, str | None], dropped: set[str]) -> str:
    given = {name: f"#SBATCH --{name}={value}" for name, value in directives.items() if value is not None}
    lines: list[str] = []
    for line in text.splitlines():
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(=.*)?", line)
        if match is None:
            if lines and lines[-1].startswith("#SBATCH"):
                lines += given.values()  # those that the script has no line for
                given = {}
            lines.append(line)
        elif match[1] not in dropped:
            lines.append(given.pop(match[1], line))
    return "\n".join(lines) + "\n"


def _check(options: SlurmOptions) -> None:
    for flag, value, pattern, expected in (
        ("--name", options.name, _WORD, "letters, digits and ._- alone"),
        ("--partition", options.partition, _WORD, "letters, digits and ._- alone"),
        ("--time", options.time, _TIME, "minutes, HH:MM:SS or DAYS-HH:MM:SS"),
    ):
        if value is not None and not pattern.fullmatch(value):
            raise LaunchFault(f"{flag} {value!r}: expected {expected}")
    for flag, number, least in (("--nodes", options.nodes, 1), ("--gpus-per-node", options.gpus_per_node, 0)):
        if number < least:
            raise LaunchFault(f"{flag} {number}: expected at least {least}")
