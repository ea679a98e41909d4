"""What this host's network carries, as the kernel knows it."""

import re
from pathlib import Path

_SYSTEM = Path("/sys/class")


def link_gbits(interface: str | None, system: Path = _SYSTEM) -> float | None:
    """Gbit/s of all active InfiniBand ports (RoCE's too), or else of an interface; None where nothing says so.

    Args:
        interface: the one towards the other hosts; None is not known.
    """
    ports = [rate for port in sorted(system.glob("infiniband/*/ports/*")) if (rate := _port_gbits(port)) is not None]
    if ports:
        return sum(ports)
    megabits = None if interface is None else _read(system / "net" / interface / "speed")
    # A virtual interface has no rate, -1 or an error.
    return int(megabits) / 1e3 if megabits is not None and megabits.isdecimal() and int(megabits) > 0 else None


def _port_gbits(port: Path) -> float | None:
    state, rate = _read(port / "state"), _read(port / "rate")
    if state is None or rate is None or "ACTIVE" not in state:
        return None
    match = re.match(r"([\d.]+) Gb/sec", rate)
    return float(match[1]) if match else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
