"""One path of `duoflow bench step` in a process of its own: `-m trainer.bench.step_path REQUEST`, a line of JSON.

What one path leaves in the allocator would be another's fresh memory, and on a virtual machine fresh pages are dear.
"""

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.fusion_objective import FusionObjective
from trainer.bench.paths import GROUPED, PLAIN, Losses, path_of
from trainer.bench.reference import plain_image_tokens
from trainer.bench.workload import Sizes, Workload, build_workload

_LEARNING_RATE = 1e-5
_WARM_UP_STEPS = 2
_EXACT_QUESTIONS = (2, 2)
"""Of each image that is compared in fp64: enough to mix up, and little to wait for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a process is to compute."""

    path: str
    sizes: Sizes
    questions: tuple[int, ...]
    """Of each image."""
    seed: int
    device: str
    dtype: str
    """Of parameters and activations while timing: float32, float16 or bfloat16."""
    seconds_at_least: float
    """Steps shorter than this are repeated; the mean counts."""
    gradients: str | None = None
    """File for the gradients of the first step."""

    @classmethod
    def decode(cls, text: str) -> "Request":
        """From the JSON of `asdict`."""
        values = json.loads(text)
        return cls(**{**values, "sizes": Sizes(**values["sizes"]), "questions": tuple(values["questions"])})


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What a path took."""

    loss: float
    """Of a step from the first weights, in fp32."""
    seconds: float
    """Of a step: the mean over `steps`."""
    user_seconds: float
    system_seconds: float
    steps: int
    peak_bytes: int
    """The most memory that the process has held: resident, or of the GPU."""
    load: float
    """Processes that wanted a core in the minute before, on average."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """How far the grouped path's image encoder is from the plain one, and what that does to the gradients in fp64.

    On a CPU the tokens are the same bits. A GPU rounds by the kernels that it chooses for a batch's size, and has fused
    attention besides; in fp32 some of the million units of DIFNet's ReLU stand so close to 0 that they switch, each a
    jump of the gradient, so there all paths are compared from the same tokens on, and in fp64 from the pixels on.
    """

    tokens: float
    """||tokens - plain tokens|| / ||plain tokens|| in fp32"""
    exact: float
    """The grouped path's gradients from the pixels on, as `Measurement.differences` but in fp64, over a few
    questions."""


def time_path(request: Request) -> Timed:
    """Compute a first step in fp32, whose gradients are kept, then time forward, backward and AdamW in `dtype`."""
    load, device, dtype = os.getloadavg()[0], torch.device(request.device), getattr(torch, request.dtype)
    workload = place(build_workload(request.sizes, questions=request.questions, seed=request.seed), device)
    objective = workload.objective
    with exact_convolutions():
        shown = workload.batch.shown
        given = _given_tokens(objective, shown) if shown.is_cuda else contextlib.nullcontext()
        with given:
            loss = _backward(path_of(workload, request.path)).item()
    if request.gradients is not None:
        gradients = {name: parameter.grad.contiguous() for name, parameter in objective.named_parameters()}
        save_file(gradients, request.gradients)
    if dtype != torch.float32:
        objective.zero_grad(set_to_none=True)
        workload = place(workload, device, dtype)
    optimizer, path = _MasterAdamW(objective), path_of(workload, request.path)
    synchronise = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None

    def step() -> None:
        _backward(path)
        optimizer.step()
        synchronise()

    if dtype == torch.float32:
        optimizer.step()  # the path is warm; AdamW makes its moments
    else:
        for _ in range(_WARM_UP_STEPS):
            step()
    return _timed(step, loss, request.seconds_at_least, load, device)


def compare_encoders(request: Request) -> Encoders:
    """See `Encoders`."""
    device = torch.device(request.device)
    workload = place(build_workload(request.sizes, questions=request.questions, seed=request.seed), device)
    objective, pixels = workload.objective, workload.batch.shown
    with exact_convolutions():
        tokens = relative_difference([objective.image_tokens(pixels)], [plain_image_tokens(objective, pixels)])
        few = build_workload(request.sizes, questions=_EXACT_QUESTIONS, seed=request.seed)
        few = place(few, device, torch.float64)
        found, expected = (_gradients(few.objective, path_of(few, name)) for name in (GROUPED, PLAIN))
    return Encoders(tokens=tokens, exact=relative_difference(found, expected))


def difference_of_files(found: Path, reference: Path) -> float:
    """`relative_difference` of two files of gradients."""
    one, other = load_file(found), load_file(reference)
    return relative_difference([one[name] for name in other], list(other.values()))


def relative_difference(gradients: list[Tensor], reference: list[Tensor]) -> float:
    """||gradients - reference|| / ||reference||, over all tensors together; NaN if anything is not finite."""
    apart = whole = 0.0
    for found, expected in zip(gradients, reference, strict=True):
        apart += float((found - expected).double().square().sum())
        whole += float(expected.double().square().sum())
    assert whole != 0, "the reference is zero: nothing was compared"
    return math.sqrt(apart / whole)


def place(workload: Workload, device: torch.device, dtype: torch.dtype = torch.float32) -> Workload:
    """The workload on a device, in a precision."""
    workload.objective.to(device=device, dtype=dtype)
    workload.objective.place_frozen(device, dtype)
    return Workload(workload.objective, workload.batch.to(device))


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """torch lets cuDNN round the inputs of fp32 convolutions to TF32, which is off by default everywhere else."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def _given_tokens(objective: FusionObjective, pixels: Tensor) -> Iterator[None]:
    """The objective takes the plain path's tokens of these pixels for its vision tower's."""
    tokens, own = plain_image_tokens(objective, pixels), objective.image_tokens
    objective.image_tokens = lambda shown: tokens if shown is pixels else own(shown)
    try:
        yield
    finally:
        del objective.image_tokens  # the method is there again


def _gradients(objective: nn.Module, path: Losses) -> list[Tensor]:
    """A path's gradients of all parameters, which are left without."""
    objective.zero_grad(set_to_none=True)
    _backward(path)
    gradients = [parameter.grad for parameter in objective.parameters()]
    objective.zero_grad(set_to_none=True)
    return gradients


def _backward(path: Losses) -> Tensor:
    """Add the gradients of a step to the parameters; returns its loss, detached."""
    total = torch.zeros(())
    for loss in path():
        loss.backward()
        total = total.to(loss.device) + loss.detach()
    return total


class _MasterAdamW:
    """AdamW on fp32 copies of the parameters, as mixed precision training has it."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = list(module.parameters())
        self._master = [parameter.detach().float().clone() for parameter in self._parameters]
        self._adamw = torch.optim.AdamW(self._master, lr=_LEARNING_RATE)

    @torch.no_grad()
    def step(self) -> None:
        """Take the gradients and update the parameters."""
        for master, parameter in zip(self._master, self._parameters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        self._adamw.step()
        torch._foreach_copy_(self._parameters, self._master)


def _timed(step: Callable[[], None], loss: float, at_least: float, load: float, device: torch.device) -> Timed:
    before, began, count = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < at_least:
        step()
        count += 1
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return Timed(
        loss=loss,
        seconds=seconds / count,
        user_seconds=(after.ru_utime - before.ru_utime) / count,
        system_seconds=(after.ru_stime - before.ru_stime) / count,
        steps=count,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else after.ru_maxrss * 1024,
        load=load,
    )


def main(text: str) -> None:
    """Answer one request on standard output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = Request.decode(text)
    answer: Any = compare_encoders(request) if request.path == "encoders" else time_path(request)
    print(json.dumps(asdict(answer)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
