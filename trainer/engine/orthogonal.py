"""Muon's products of matrices on processors that have no instructions for bf16.

Muon makes the update of a matrix orthogonal by Newton and Schulz's iteration, which timm computes in bf16. torch has
fast products of bf16 where oneDNN has, on x86 from AVX-512 on; elsewhere, on most laptops and on AMD's servers before
Zen 4, it multiplies by plain loops that take 8 to 30 times as long as float32: five sixths of a small model's step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import muon
from torch import Tensor

_SMALL = 1 << 17
"""Multiplications of a product below which torch's own loops are no slower."""


def slow_on_this_processor() -> bool:
    """Whether torch multiplies bf16 matrices on this CPU by loops of its own."""
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def step_in_float32(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer of timm's iterate large matrices on a CPU in float32, and round what comes out to bf16."""
    step = optimizer.step

    def take_step(*args: Any, **kwargs: Any) -> Any:
        with _iterating_in_float32():
            return step(*args, **kwargs)

    optimizer.step = take_step


@contextmanager
def _iterating_in_float32() -> Iterator[None]:
    iterate = muon.zeropower_via_newtonschulz

    def through_float32(matrix: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if matrix.device.type != "cpu" or matrix.numel() * min(matrix.shape[-2:]) <= _SMALL:
            return iterate(matrix, *args, **kwargs)
        return iterate(matrix, *args, dtype=torch.float32, **kwargs).bfloat16()

    muon.zeropower_via_newtonschulz = through_float32
    try:
        yield
    finally:
        muon.zeropower_via_newtonschulz = iterate
