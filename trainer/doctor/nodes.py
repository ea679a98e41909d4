"""`duoflow doctor [RECIPE] --hostfile F`: every host of a hostfile looked at, compared, and the odd one named."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from launch.hosts.ssh import ASKED_AT_ONCE, Hosts
from launch.plan.forward import forwarded, ssh_options
from launch.plan.hostfile import read_hostfile
from launch.plan.launch_plan import Node
from launch.plan.words import LaunchFault
from shards.errors import ConfigError
from trainer.columns import aligned
from trainer.config import RunConfig
from trainer.config.schema import REPOSITORY
from trainer.doctor.packages import lower_bounds

COLUMNS = ("host", "python", "packages", "code", "gpus", "free", "shards", "clock")
SPLITS = ("train", "val")
CLOCK_SECONDS = 5.0
"""Clocks that differ by more mix up logs and time limits."""
LEAST_FREE = 1 << 30
"""Bytes; less does not hold the checkpoints of any real run."""


class Seen(NamedTuple):
    """What a host answered, and this machine's clock around it."""

    answer: Mapping[str, Any]
    before: float
    after: float
    """Seconds since 1970."""

    @property
    def clock_offset(self) -> float:
        """Seconds by which the host's clock is ahead, at least (negative: behind); 0 if it may be right."""
        clock = self.answer["clock"]
        return max(clock - self.after, 0.0) + min(clock - self.before, 0.0)


def examine_hosts(hostfile: Path, config: RunConfig | None) -> tuple[list[str], list[str]]:
    """Look at every host at once.

    Args:
        config: of a recipe, whose shards and place for runs are looked at too.

    Returns:
        The lines of a table, a host each; and a line for each thing that keeps a run from starting.

    Raises:
        ConfigError: the hostfile is wrong, or ssh cannot be used from here.
    """
    try:
        nodes = read_hostfile(hostfile)
        seen, unreached = _look(nodes, config)
    except LaunchFault as fault:
        raise ConfigError(str(fault)) from None
    return table(nodes, seen), [*unreached.values(), *differences(seen), *shortcomings(nodes, seen)]


def differences(seen: Mapping[str, Seen]) -> Iterator[str]:
    """What hosts do not have in common; the fewer are named, with what most have."""
    for what, values in _common(seen).items():
        counts = Counter(values.values())
        # Of equally many, what the first host has: its rank 0 is what the others follow.
        usual = max(counts, key=lambda value: counts[value]) if counts else None
        for host, value in values.items():
            if value != usual:
                yield f"host {host}: {what}: {_short(value)}, and {counts[usual]} other host(s) have {_short(usual)}"


def shortcomings(nodes: Sequence[Node], seen: Mapping[str, Seen]) -> Iterator[str]:
    """What a host lacks by itself."""
    has_gpus = any(host.answer["gpus"] for host in seen.values())
    for node in nodes:
        if node.name not in seen:
            continue
        host = seen[node.name]
        answer, where = host.answer, f"host {node.name}"
        if has_gpus and len(answer["gpus"]) < node.slots:
            yield f"{where}: gpus: {len(answer['gpus'])} for slots={node.slots}; lower the slots of all hosts"
        disk = answer["disk"]
        if not disk["writable"]:
            yield f"{where}: {disk['place']}: cannot be written to; set run.directory to a place that can"
        if disk["free"] < LEAST_FREE:
            yield f"{where}: {disk['place']}: {disk['free'] / 2**30:.2f} GiB free; a run's checkpoints need more"
        for split, found in answer["splits"].items():
            if "fault" in found:
                yield f"{where}: data.{split}: {found['fault']}; every host reads the same shards at the same path"
            elif found["wrong"]:
                such = ", ".join(found["such_as"])
                lacking = f"{found['wrong']} of {found['shards']} shards are missing or cut off, such as {such}"
                yield f"{where}: data.{split}: {lacking}; copy them again"
        if abs(host.clock_offset) > CLOCK_SECONDS:
            way = "ahead of" if host.clock_offset > 0 else "behind"
            yield f"{where}: clock: {abs(host.clock_offset):.0f} s {way} this machine's; set it by NTP"


def table(nodes: Sequence[Node], seen: Mapping[str, Seen]) -> list[str]:
    """A line for each host under a line of titles; one that was not reached has its name alone."""
    return aligned([COLUMNS, *(_cells(node.name, seen.get(node.name)) for node in nodes)])


def _look(nodes: Sequence[Node], config: RunConfig | None) -> tuple[dict[str, Seen], dict[str, str]]:
    """What each host answers, and why others did not."""
    environment = forwarded(os.environ)
    hosts = Hosts(
        names=tuple(node.name for node in nodes),
        options=tuple(ssh_options(os.environ)),
        directory=os.getcwd(),
        python=sys.executable,
        environment={"PYTHONSAFEPATH": "1", "PYTHONPATH": str(REPOSITORY)}
        | {name: value for name, value in environment.items() if name == "DS_ACCELERATOR"},
    )
    run = Path.cwd() / ("runs" if config is None else config.run.directory)
    splits = {} if config is None else {split: getattr(config.data, split) for split in SPLITS}
    request = {
        "packages": sorted(lower_bounds()),
        # What lies behind a URL is the same for all of them.
        "splits": {split: where for split, where in splits.items() if where is not None and "://" not in where},
    }

    def look(host: str) -> Seen | str:
        before = time.time()
        try:
            answer = hosts.ask(host, "probe", str(run), stdin=json.dumps(request).encode())
        except LaunchFault as fault:
            return str(fault)
        return Seen(answer, before, time.time())

    with ThreadPoolExecutor(min(ASKED_AT_ONCE, len(hosts.names))) as pool:
        found = dict(zip(hosts.names, pool.map(look, hosts.names), strict=True))
    unreached = {host: fault for host, fault in found.items() if isinstance(fault, str)}
    return {host: seen for host, seen in found.items() if isinstance(seen, Seen)}, unreached


def _common(seen: Mapping[str, Seen]) -> dict[str, dict[str, str]]:
    """What has to be the same everywhere: what it is -> host -> value. Splits that a host lacks are named elsewhere."""
    values: dict[str, dict[str, str]] = {}
    for host, found in seen.items():
        answer = found.answer
        same = {"python": answer["python"], "code": answer["code"], "gpus": _gpus(answer["gpus"])}
        same |= {package: version or "not installed" for package, version in answer["versions"].items()}
        same |= {f"data.{name}": split["index"] for name, split in answer["splits"].items() if "index" in split}
        for what, value in same.items():
            values.setdefault(what, {})[host] = value
    return values


def _cells(name: str, seen: Seen | None) -> tuple[str, ...]:
    if seen is None:
        return (name, "not reached", *[""] * (len(COLUMNS) - 2))
    answer = seen.answer
    installed = sum(version is not None for version in answer["versions"].values())
    offset = seen.clock_offset
    return (
        name,
        answer["python"],
        f"{installed} of {len(answer['versions'])}",
        _short(answer["code"]),
        _gpus(answer["gpus"]),
        f"{answer['disk']['free'] / 2**30:.1f} GiB",
        ", ".join(f"{split} {_split(found)}" for split, found in answer["splits"].items()) or "not asked",
        "right" if abs(offset) < 1 else f"{offset:+.0f} s",
    )


def _split(found: Mapping[str, Any]) -> str:
    if "fault" in found:
        return "not there"
    whole = found["shards"] - found["wrong"]
    return f"{whole} of {found['shards']} ({_short(found['index'])})"


def _gpus(names: Sequence[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in Counter(names).items()) or "none"


def _short(value: str) -> str:
    """A digest is told apart by its first digits."""
    return value[:10] if len(value) == 64 else value
