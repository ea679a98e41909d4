"""Small engine states, and ways for the process that writes them to come to harm."""

import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from trainer.engine.state_file import EngineState


def engine_state(seed: int = 0, *, step: int = 7, width: int = 5) -> EngineState:
    """Three parameters with random values, among them a scalar and one with a negative zero."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"fusion.weight": (width, 3), "fusion.bias": (width,), "gate": ()}

    def draw() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    parameters = draw()
    parameters["fusion.bias"][0] = -0.0
    return EngineState(
        parameters=parameters,
        moments={"exp_avg": draw(), "exp_avg_sq": draw()},
        optimizer_step=step,
        skipped_steps=2,
        loss_scaler={"cur_scale": 1024.0, "cur_iter": 9, "last_overflow_iter": -1, "cur_hysteresis": 2},
    )


def bits(state: EngineState) -> dict[str, object]:
    """Everything in a state, comparable bit by bit."""
    groups = {"parameters": state.parameters, **state.moments}
    tensors = {
        f"{g}.{n}": (t.shape, t.dtype, t.numpy().tobytes()) for g, group in groups.items() for n, t in group.items()
    }
    return tensors | {"small": (state.optimizer, state.optimizer_step, state.skipped_steps, state.loss_scaler)}


@contextlib.contextmanager
def full_disk(bytes_per_file: int) -> Iterator[None]:
    """No file of this process may grow beyond this: writes fail half-way, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kill_at_each_touch_of_the_disk(act: Callable[[], object]) -> Iterator[int]:
    """Run `act` in forked processes, killed before the first flush, rename or removal, then before the second, ...

    Yields:
        The number of the touch after each kill; ends once `act` comes to its end.
    """
    touch = 0
    while True:
        child = os.fork()
        if child == 0:
            _kill_before(touch)
            try:
                act()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return
        yield touch
        touch += 1


def _kill_before(touch: int) -> None:
    remaining = touch

    def fatal(function: Callable) -> Callable:
        def count(*args: object, **kwargs: object) -> object:
            nonlocal remaining
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            remaining -= 1
            return function(*args, **kwargs)

        return count

    os.fsync, os.replace, os.unlink, os.rmdir = map(fatal, (os.fsync, os.replace, os.unlink, os.rmdir))
    Path.rename, Path.mkdir, shutil.rmtree = map(fatal, (Path.rename, Path.mkdir, shutil.rmtree))
