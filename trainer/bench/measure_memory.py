"""Measures what a step of a model takes, and plans the same: a process for the bytes of each, and one for seconds.

A process that lets go of memory keeps it: the C library holds freed blocks back. Where bytes are counted, it is told to
map large blocks one by one, which go back at once; that costs time, so seconds are taken apart.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from shards.errors import UserError
from trainer.bench.device import bench_device
from trainer.bench.machine import circumstances

RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
"""glibc's: blocks from 64 KiB on are mapped by themselves."""


class Row(NamedTuple):
    """A model with the shapes of a recipe."""

    recipe: str
    planned_bytes: int
    """Parameters, gradients, optimizer state, buffers and activations."""
    measured_bytes: int
    """The most above what the process held before the model was built."""
    predicted_ms: float
    """Of a step, from two smaller micro-batches."""
    measured_ms: float

    @property
    def memory_error(self) -> float:
        """Of the plan, as a part of what was measured."""
        return self.planned_bytes / self.measured_bytes - 1.0

    @property
    def time_error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1.0


def measure_memory(*, progress: Callable[[str], None] = lambda _: None) -> tuple[list[Row], dict[str, Any]]:
    """Every shape, and what the figures depend on.

    Raises:
        UserError: a process that measures failed.
    """
    from trainer.bench.memory_worker import RECOMPUTED, SHAPES, SHARES

    sizes = {name: _ask(progress, "bytes", name) for name in SHAPES}
    held = {share: _ask(progress, "bytes", RECOMPUTED, str(share))["step"] for share in SHARES if share}
    plain = sizes[RECOMPUTED]["step"]
    seconds = _ask(progress, "seconds")
    rows = [
        Row(
            name, found["planned"], found["measured"], seconds["rows"][name]["predicted"], seconds["rows"][name]["step"]
        )
        for name, found in sizes.items()
    ]
    took = {share: seconds["checkpointing"][str(share)] for share in SHARES}
    about = circumstances(bench_device(None)) | {key: seconds[key] for key in ("threads", "visits", "probes")}
    about["checkpointing"] = {
        "recipe": RECOMPUTED,
        "bytes": plain,
        "ms": took[0.0],
        "shares": {
            str(share): {
                "bytes": recomputed,
                "memory": recomputed / plain - 1.0,
                "ms": took[share],
                "time": took[share] / took[0.0] - 1.0,
            }
            for share, recomputed in held.items()
        },
    }
    return rows, about


def _ask(progress: Callable[[str], None], *what: str) -> dict[str, Any]:
    """What a process of its own answers: one that has trained a model holds memory that the next would find there."""
    progress(f"measuring {' of '.join(what)}")
    env = dict(os.environ) | (RETURN_MEMORY if what[0] == "bytes" else {})
    command = [sys.executable, "-m", "trainer.bench.memory_worker", *what]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"bench memory: the process that measures {what[0]} ended with {done.returncode}; see above")
    return json.loads(done.stdout.strip().splitlines()[-1])
