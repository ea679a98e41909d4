"""How much memory a rank has for training: of its GPU, or its share of what this host has left."""

import resource
from pathlib import Path

import torch

from launch.processes.memory import limit_bytes, memory_group

GPU_RESERVE_BYTES, GPU_RESERVE_SHARE = 1 << 30, 0.06
"""Of a GPU's memory what is not planned with: its context, buffers of NCCL and libraries, gaps between blocks."""
HOST_SHARE = 0.9
"""Of a host's memory what is planned with: loaders and the operating system live there too."""


def capacity(device: torch.device, *, ranks_here: int) -> int:
    """Bytes that a rank may take in all: of a host, those that this process has taken already are among them."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserve = int(max(GPU_RESERVE_BYTES, GPU_RESERVE_SHARE * total))
        # What others have taken of it is gone; what this process has taken already is among what it may take.
        return min(total - reserve, free + torch.cuda.memory_reserved(device) - GPU_RESERVE_BYTES)
    return resident_bytes() + int(HOST_SHARE * min(_available_bytes() // ranks_here, _left_of_limit()))


def resident_bytes(*, peak: bool = False) -> int:
    """What this process holds of a host's memory now, or has held at most."""
    return _kibibytes("/proc/self/status", "VmHWM" if peak else "VmRSS")


def _available_bytes() -> int:
    """Of the host, or of this process's control group where that has less left."""
    available = _kibibytes("/proc/meminfo", "MemAvailable")
    group = memory_group()
    limit = None if group is None else limit_bytes(group)
    if limit is None:
        return available
    return min(available, max(0, limit - _held_by(group)))


def _held_by(group: Path) -> int:
    for name in ("memory.current", "memory.usage_in_bytes"):
        if (group / name).is_file():
            return int((group / name).read_text(encoding="ascii"))
    return 0


def _left_of_limit() -> int:
    """What `ulimit -v` leaves of addresses."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return 1 << 62
    return max(0, soft - _kibibytes("/proc/self/status", "VmSize"))


def _kibibytes(path: str, key: str) -> int:
    """A line `key: N kB` in bytes."""
    for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise LookupError(f"{path} has no {key}")
