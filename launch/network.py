"""Addresses and ports: where rank 0 is for the others, and a port there that nobody listens on."""

import hashlib
import socket
from collections.abc import Sequence

FIRST_PORT, LAST_PORT = 20_000, 29_999
"""Below what Linux gives to outgoing connections (32768 on), so that none of them takes the port in between."""
TRIED_PORTS = 64


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether a server could listen on this TCP port of this host."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # else a port counts as taken a minute after its use
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError:
            return False
    return True


def ports_for(name: str) -> list[int]:
    """Ports to try for a run, in order: neighbouring runs begin at different ones."""
    span = LAST_PORT - FIRST_PORT + 1
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % span
    return [FIRST_PORT + (start + step) % span for step in range(TRIED_PORTS)]


def addresses(host: str) -> list[str]:
    """IP addresses of a name, IPv4 first; none if nobody knows it."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def reachable_address(known: Sequence[str], others: Sequence[str]) -> str | None:
    """The address of a host by which other hosts reach it.

    Debian resolves a host's own name to 127.0.1.1. A loopback address can only be this very machine, so the address
    that it uses towards the others is taken.

    Args:
        known: addresses of the host.
        others: an address of each other host; without any, loopback will do.
    """
    outside = [address for address in known if not is_loopback(address)]
    if outside or not known:
        return next(iter(outside), None)
    towards = [address for address in others if not is_loopback(address)]
    return address_towards(towards[0]) if towards else known[0]


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def address_towards(address: str) -> str | None:
    """This host's address on the way to another; None without a way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # on a datagram socket this looks up the route and sends nothing
            return probe.getsockname()[0]
    except OSError:
        return None
