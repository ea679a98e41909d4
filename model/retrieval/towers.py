"""The two towers of a CLIP or SigLIP, each with what leads from it into the common space; and the temperature."""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from model.retrieval.batch import Texts

SCALES = (1.0, 100.0)
"""What cosines are multiplied with at least and at most, as CLIP was trained."""


class TextTower(nn.Module):
    """Questions to (Q, D) float32 of length 1."""

    def __init__(self, model: PreTrainedModel, projection: nn.Module | None) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, texts: Texts) -> Tensor:
        pooled = self.model(input_ids=texts.ids, attention_mask=texts.mask).pooler_output
        return _unit(pooled, self.projection)


class VisionTower(nn.Module):
    """Pages (P, 3, H, W) to (P, D) float32 of length 1."""

    def __init__(self, model: PreTrainedModel, projection: nn.Module | None) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, pages: Tensor) -> Tensor:
        pooled = self.model(pixel_values=pages.to(next(self.parameters()).dtype)).pooler_output
        return _unit(pooled, self.projection)


class Temperature(nn.Module):
    """What cosines are multiplied with: its logarithm is learnt, and held between two bounds.

    The parameter itself is not touched, for the optimizer has a copy of it in fp32 that would not learn of that. It is
    what was added to where a checkpoint starts: near 0 half precision rounds little, and CLIP's own scale, which is at
    the bound, is not rounded beyond it.

    Args:
        start: logarithm of the checkpoint's own; beyond CLIP's bounds it is the bound itself.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        low, high = map(math.log, SCALES)
        self.start, self.bounds = start, (min(low, start), max(high, start))
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        """() float32"""
        return _Held.apply(self.start + self.offset.float(), *self.bounds).exp().squeeze(0)

    def log_scale(self, offset: Tensor) -> Tensor:
        """The logarithm of the scale that a value of the parameter leads to."""
        return (self.start + offset).clamp(*self.bounds)


class _Held(torch.autograd.Function):
    """Clamps; a gradient that leads back between the bounds passes, so that a value beyond them is not stuck there."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (value,), (low, high) = ctx.saved_tensors, ctx.bounds
        outwards = ((value > high) & (gradient < 0)) | ((value < low) & (gradient > 0))
        return gradient.masked_fill(outwards, 0.0), None, None


def _unit(pooled: Tensor, projection: nn.Module | None) -> Tensor:
    return nn.functional.normalize((pooled if projection is None else projection(pooled)).float(), dim=-1)
