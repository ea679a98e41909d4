"""`--profile N`: what N steps do, operation by operation, as a trace for chrome://tracing or Perfetto."""

import logging
import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

logger = logging.getLogger(__name__)

LEFT_OUT = 2
"""First steps of a process, which start workers and warm up kernels."""


class StepProfiler:
    """Traces so many steps of this process behind the first ones, and writes them when they are done.

    Args:
        directory: where the trace comes to lie; made when there is one.
        steps: how many.
        device: whose kernels are traced beside the host.
    """

    def __init__(self, directory: Path, steps: int, device: torch.device) -> None:
        self._directory, self._steps, self._device = directory, steps, device
        self._seen, self._first, self._last = 0, 0, 0
        self._profile: profile | None = None

    def step_begins(self, step: int) -> None:
        """Before anything of optimizer step `step`, the first being 1."""
        if self._seen == LEFT_OUT:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._profile, self._first = profile(activities=activities), step
            self._profile.start()
        self._seen += 1
        self._last = step

    def step_ended(self) -> None:
        """Behind everything of the step."""
        if self._seen == LEFT_OUT + self._steps:
            self.close()

    def close(self) -> None:
        """Write what was traced so far, if anything."""
        if self._profile is None:
            return
        traced, self._profile = self._profile, None
        traced.stop()
        path = self._directory / f"steps{self._first}-{self._last}.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.partial")
            traced.export_chrome_trace(str(aside))
            os.replace(aside, path)
        except OSError as error:
            logger.warning("%s: the trace cannot be written (%s); training goes on", path, error.strerror)
            return
        logger.info("%s: a trace of steps %d to %d, for chrome://tracing", path, self._first, self._last)
