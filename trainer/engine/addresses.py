"""Names, addresses and interfaces of hosts: whether ranks can meet, looked up before torch is imported."""

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence

from launch.network import address_towards, is_loopback
from shards.errors import ConfigError
from trainer.engine.process import Place
from trainer.engine.waiting import LateError, Stop, wait_for

_GET_INTERFACE_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux (netdevice(7)); its answer carries the IPv4 address in bytes 20 to 24."""
_RETRY_SECONDS = 0.5


def check_meeting_place(place: Place, *, seconds: float, stop: Stop | None = None) -> None:
    """Whether the host of rank 0 has an address, and, on rank 0, whether its port is free.

    A name that is not known yet is asked for again: in Kubernetes it appears with the pod.

    Args:
        seconds: how long to ask.

    Raises:
        ConfigError: with rank and host, what was found.
        StoppedError: a signal came first.
    """
    if place.world_size == 1:
        return
    assert place.address is not None, "a rank of several has an address to meet at"
    assert place.port is not None, "and a port"
    deadline = time.monotonic() + seconds
    try:
        wait_for(lambda: _resolve(place.address, deadline), "a name", deadline=deadline, stop=stop)
    except (LateError, OSError) as error:
        reason = f"{error.strerror}, " if isinstance(error, OSError) else ""
        raise ConfigError(
            f"{place}: MASTER_ADDR={place.address} has no address here ({reason}asked for {seconds:g} s); expected the "
            "name or the address of the host of rank 0, as every host knows it"
        ) from None
    if place.rank == 0 and not is_served_by_agent():
        _check_free(place)


def is_served_by_agent() -> bool:
    """Whether torchrun itself listens on MASTER_PORT, for its ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _resolve(name: str, deadline: float) -> None:
    while True:
        try:
            socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            if time.monotonic() + _RETRY_SECONDS > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _check_free(place: Place) -> None:
    try:
        socket.create_server(("", place.port)).close()
    except OSError as error:
        found = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(
            f"{place}: MASTER_PORT={place.port}: {found}; choose a port that is free on this host"
        ) from None


def own_address(master: str) -> str | None:
    """This host's IPv4 address on the way to the host of rank 0; None where there is none, as with IPv6 alone."""
    try:
        found = socket.gethostbyname(master)
    except OSError:
        return None
    return address_towards(found)


def address_between(own: str | None, everybodys: Sequence[str | None]) -> str | None:
    """This host's IPv4 address that other hosts can reach; None if all ranks seem to be here.

    On the host of rank 0 its own name may lead to the loopback interface (Debian's 127.0.1.1): then it is the way to
    the first rank that is elsewhere.

    Args:
        own: this rank's address on the way to rank 0.
        everybodys: that of each rank; those of a host are the same.
    """
    if own is not None and not is_loopback(own):
        return own if any(address != own for address in everybodys) else None
    elsewhere = next((address for address in everybodys if address is not None and not is_loopback(address)), None)
    return None if elsewhere is None else address_towards(elsewhere)


def interface_with_address(address: str) -> str | None:
    """The name of the network interface that has this IPv4 address, None if there is none."""
    import fcntl  # not on every platform, and only Linux answers the question below

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(handle.fileno(), _GET_INTERFACE_ADDRESS, request)
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
