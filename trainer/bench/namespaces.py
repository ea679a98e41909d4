"""Hosts on one machine: network namespaces around a bridge, each with a link whose rate can be set."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shards.errors import UserError

INTERFACE = "eth0"
"""Of each host."""
_PREFIX = "duoflow"
_NETWORK = "10.83.0"
_BURST_SECONDS, _QUEUE_SECONDS = 0.002, 0.4
"""A burst passes at once: it must be short against a message. The queue must hold what TCP has on its way."""
_SMALLEST_BURST = 16_384
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


class Host(NamedTuple):
    """A network namespace."""

    namespace: str
    address: str

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to run on this host."""
        return ["ip", "netns", "exec", self.namespace]


def parse_rate(text: str) -> float:
    """Bits per second of `100mbit`, `2.5gbit`.

    Raises:
        UserError: it is no rate.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--rate {text}: expected a number with kbit, mbit or gbit, such as 100mbit")
    return float(match[1]) * _UNITS[match[2]]


def check_can_make_hosts() -> None:
    """Whether this process may make network namespaces, and has what it takes.

    Raises:
        UserError: it may not, or has not.
    """
    if os.geteuid() != 0:
        raise UserError("--hosts: more than one host is made of network namespaces, which only root can make; use sudo")
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise UserError(f"--hosts: {' and '.join(missing)} not found; install iproute2")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts, reachable from each other and from nowhere else; gone afterwards.

    Raises:
        UserError: the system does not allow it.
    """
    _remove_orphans()
    names = [f"{_PREFIX}-{os.getpid()}-{number}" for number in range(count + 1)]
    made = [Host(name, f"{_NETWORK}.{number}") for number, name in enumerate(names) if number]
    switch = names[0]
    with contextlib.ExitStack() as stack:
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        for number, host in enumerate(made, start=1):
            port = f"port{number}"
            ends = ("link", "add", port, "netns", switch, "type", "veth", "peer", "name", INTERFACE)
            _run("ip", *ends, "netns", host.namespace)
            _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _run("ip", "-n", host.namespace, "link", "set", interface, "up")
        yield made


def shape(made: Sequence[Host], bits_per_second: float | None) -> None:
    """Let every host send at most so much; None takes the limit away."""
    for host in made:
        if bits_per_second is None:
            _run("tc", "-n", host.namespace, "qdisc", "replace", "dev", INTERFACE, "root", "pfifo", "limit", "1000")
            continue
        burst = max(_SMALLEST_BURST, round(bits_per_second / 8 * _BURST_SECONDS))
        queue = round(bits_per_second / 8 * _QUEUE_SECONDS) + burst
        limits = ("rate", f"{round(bits_per_second)}bit", "burst", str(burst), "limit", str(queue))
        _run("tc", "-n", host.namespace, "qdisc", "replace", "dev", INTERFACE, "root", "tbf", *limits)


def _remove_orphans() -> None:
    """Namespaces of processes that were killed."""
    for line in _run("ip", "netns", "list").splitlines():
        match = re.match(rf"({_PREFIX}-(\d+)-\d+)\b", line)
        if match is not None and not os.path.exists(f"/proc/{match[2]}"):
            _run("ip", "netns", "del", match[1])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--hosts: this system makes no network namespaces ({' '.join(command)}: {reason})")
    return done.stdout
