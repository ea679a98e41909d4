"""Counts of operations that are linear in the numbers of a batch: so many per image, per word, per pair of words.

A multiplication with its addition is two operations. Matrix products and convolutions count; what is done element by
element does not, as everywhere where a part of a machine's peak is spoken of.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn


class Rows(NamedTuple):
    """How many rows a matrix product has: a number of the batch by name, so many times."""

    number: str
    times: float = 1.0


class Tally:
    """Operations of a forward pass and of its backward pass, by the numbers of the batch that they grow with.

    What autograd leaves out is not counted: the gradient of a frozen weight, and that of an input that nothing trained
    has led to. What checkpointing computes a second time is not counted either: it serves memory, not the model.
    """

    def __init__(self) -> None:
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()

    def of(self, numbers: Mapping[str, float]) -> tuple[float, float]:
        """Forward and backward for these numbers of a batch."""
        forward, backward = (
            sum(times * numbers[name] for name, times in counter.items()) for counter in (self.forward, self.backward)
        )
        return forward, backward

    def product(self, size: float, rows: Rows, *, gradients: int) -> None:
        """Rows x `size` multiplications, and so many gradients of them, each of which costs as much."""
        self.forward[rows.number] += 2 * size * rows.times
        self.backward[rows.number] += 2 * size * rows.times * gradients

    def linear(self, layer: nn.Module, rows: Rows, grad: bool) -> bool:
        """A linear layer, with LoRA's adapters where it has some.

        Args:
            grad: whether its input carries a gradient.

        Returns:
            Whether its output does.
        """
        base = getattr(layer, "base_layer", layer)
        trained = base.weight.requires_grad
        self.product(base.in_features * base.out_features, rows, gradients=grad + trained)
        out = grad or _is_trained(base)
        for name in getattr(layer, "lora_A", {}):
            inner = self.linear(layer.lora_A[name], rows, grad)
            out = self.linear(layer.lora_B[name], rows, inner) or out
        return out

    def convolution(self, layer: nn.Conv2d, rows: Rows, grad: bool) -> bool:
        """A convolution, whose rows are the places of its output."""
        height, width = layer.kernel_size
        size = layer.in_channels // layer.groups * layer.out_channels * height * width
        self.product(size, rows, gradients=grad + layer.weight.requires_grad)
        return grad or _is_trained(layer)

    def attention(self, width: int, pairs: Rows, *, query: bool, key: bool, value: bool) -> bool:
        """Scores of `pairs` of a query and a key, and their mixture; `width` is that of all heads together.

        Args:
            query: whether the queries carry a gradient; `key` and `value` likewise.
        """
        self.product(width, pairs, gradients=query + key)
        self.product(width, pairs, gradients=(query or key) + value)
        return query or key or value

    def sequence(self, layers: nn.Module, rows: Rows, grad: bool) -> bool:
        """The linear layers of a module one behind the other, whatever stands between them."""
        for layer in layers.modules():
            if isinstance(layer, nn.Linear):
                grad = self.linear(layer, rows, grad)
            else:
                grad = grad or any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        return grad


def _is_trained(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def is_trained(module: nn.Module | None) -> bool:
    """Whether anything of a module is."""
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())
