"""Gradient checkpointing (Chen et al. 2016): layers whose inside is computed again in the backward pass, and not kept.

Of a stack it may be some. They are the first ones: the backward pass has then let go of the others before it computes
the first of these again.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
L = TypeVar("L", bound=nn.Module)


def which_again(layers: Iterable[L], share: float) -> Iterator[tuple[L, bool]]:
    """Each layer of a stack, and whether it is computed again: the first `share` of them, a part of one being one."""
    stack = list(layers)
    count = math.ceil(share * len(stack) - 1e-9)  # a product of decimals may lie a little above what it means
    return ((layer, place < count) for place, layer in enumerate(stack))


def run_layer(function: Callable[..., T], again: bool, *inputs: object, **named: object) -> T:
    """What the function makes of its inputs; with `again` its inside is computed once more for the gradient."""
    if again and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, **named)
    return function(*inputs, **named)


def recompute_layers_in(model: "PreTrainedModel", share: float) -> None:
    """Have a model of transformers do so with `share` of each of its stacks, which may be none."""
    if share == 0:
        return
    from transformers.modeling_layers import GradientCheckpointingLayer  # it takes a second, which other towers save

    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList):
            for layer, again in which_again(stack, share):
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.gradient_checkpointing = again
