"""On what a benchmark ran: what the JSON of each of them says of it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer.config.schema import REPOSITORY
from trainer.reporting.environment import git_state


def circumstances(device: torch.device) -> dict[str, Any]:
    """Device, processor, threads, versions and commit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": {"processor": _processor(), "cores": len(os.sched_getaffinity(0))},
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "pillow")},
        "git": git_state(REPOSITORY),
    }


def _processor() -> str:
    """The name of the processor, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
