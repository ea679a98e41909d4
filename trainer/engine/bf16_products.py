"""Products of bf16 matrices on processors that have no instructions for them.

Muon makes the update of a matrix orthogonal by products of bf16 matrices. torch has fast ones where oneDNN has, on x86
from AVX-512 on; elsewhere, on most laptops and on AMD's servers before Zen 4, it multiplies by plain loops that take 8
to 30 times as long as float32, which made them five sixths of the whole training step of a small model.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCTS = (torch.addmm, torch.baddbmm)
_SMALL = 1 << 17
"""Multiplications below which torch's own loops are not slower."""


def slow_on_this_processor() -> bool:
    """Whether torch multiplies bf16 matrices on this CPU by loops of its own."""
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class ThroughFloat32(TorchFunctionMode):
    """While it is entered, a large product of bf16 matrices on a CPU is summed in float32 and rounded once.

    Operands are rounded to bf16 as before, and so is what comes out: another order of summation, and nothing else.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function not in _PRODUCTS or not _is_large(*args[1:3]):
            return function(*args, **kwargs)
        out = kwargs.pop("out", None)
        result = function(*(operand.float() for operand in args), **kwargs)
        return result.bfloat16() if out is None else out.copy_(result)


def _is_large(left: Tensor, right: Tensor) -> bool:
    cpu_bf16 = left.dtype == torch.bfloat16 and left.device.type == "cpu"
    return cpu_bf16 and left.numel() * right.shape[-1] > _SMALL


def step_through_float32(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer take its steps so."""
    step = optimizer.step

    def take_step(*args: Any, **kwargs: Any) -> Any:
        with ThroughFloat32():
            return step(*args, **kwargs)

    optimizer.step = take_step
