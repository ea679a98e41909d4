"""Layer-wise learning rates: which layer of its tower a parameter belongs to.

The rule is BEiT's (Bao et al., arXiv 2106.08254, appendix) as timm has it: embeddings are layer 0, then come the
layers of the transformer, the last norm goes with the last of them, and a head is one more. What reads a tower is to
it what a head would be: its own heads, the fusion encoder, LoRA's adapters and the parts of the loss keep the whole
learning rate.
"""

import re
from collections.abc import Iterator, Mapping
from typing import get_args

from torch import nn

from model.config import Tower

_LAYER = re.compile(r"(?:^|\.)(?:\w*layers?|blocks?)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embeddings|shared|embed_tokens|patch_embed|pos_embed|visn_fc)(?:\.|$)")
_A_HEAD = "-"
"""The name of no parameter and of no pattern."""
_HEADS = re.compile(r"(?:^|\.)(?:itm_head|lm_head|cls)\.")


def layer_scales(objective: nn.Module, decay: float) -> dict[str, float]:
    """By parameter, the part of the learning rate that it gets.

    Args:
        objective: its children that are named like towers have layers; the others are scaled by 1.
        decay: the scale of a layer as a part of that of the layer above, more than 0 and at most 1.
    """
    scales = {}
    for name, child in objective.named_children():
        if name in get_args(Tower):
            scales |= {f"{name}.{inner}": decay**depth for inner, depth in tower_depths(child).items()}
    return {name: scales.get(name, 1.0) for name, _ in objective.named_parameters()}


def tower_depths(tower: nn.Module) -> dict[str, int]:
    """By parameter, how many layers lie above its own; 0 for heads."""
    depths = dict(_by_name([name for name, _ in tower.named_parameters()]))
    for prefix, module in tower.named_modules():
        if hasattr(module, "group_matcher"):
            start = f"{prefix}." if prefix else ""
            depths |= {f"{start}{name}": depth for name, depth in _by_timm(module).items()}
    return depths


def _by_timm(model: nn.Module) -> dict[str, int]:
    """By timm's own table of layers, in which a head is what no pattern names: so is SAM's neck, and so is what would
    be read by a head if there were one."""
    from timm.models._manipulate import group_with_matcher  # imports every model of timm: seconds

    names = [name for name, _ in model.named_parameters()]
    pairs = ((name, None) for name in (*names, _A_HEAD))
    layers: dict[str, int] = group_with_matcher(pairs, model.group_matcher(coarse=False), reverse=True)
    top = layers.pop(_A_HEAD)
    return {name: top - layer for name, layer in layers.items()}


def _by_name(names: list[str]) -> Iterator[tuple[str, int]]:
    """By the names that transformers and this package give: the layers of an encoder and of a decoder count apart, and
    stacks within one of them (LXMERT's cross layers) lie on each other in their order."""
    counts: dict[str, int] = {}
    for name in names:
        if layer := _LAYER.search(name):
            stack = name[: layer.start(1) - 1]
            counts[stack] = max(counts.get(stack, 0), int(layer[1]) + 1)
    top = _tops(counts)
    for name in names:
        layer, stack = _LAYER.search(name), _nearest_stack(name, counts)
        if _HEADS.search(name) or stack is None:
            yield name, 0
        elif layer:
            yield name, top[stack] - int(layer[1])
        elif _EMBEDDINGS.search(name):
            yield name, top[stack] + 1
        else:
            yield name, 1


def _tops(counts: Mapping[str, int]) -> dict[str, int]:
    """How many layers lie from the lowest of each stack up, with those of the stacks on it."""
    tops: dict[str, int] = {}
    above: dict[str, int] = {}
    for stack in reversed(counts):
        parent = stack.rpartition(".")[0]
        above[parent] = tops[stack] = above.get(parent, 0) + counts[stack]
    return tops


def _nearest_stack(name: str, counts: Mapping[str, int]) -> str | None:
    """The stack of layers with which a name has most of its path in common, the first one of several."""
    path = name.split(".")

    def shared(stack: str) -> int:
        pairs = zip(path, stack.split("."), strict=False)
        return next((number for number, (own, theirs) in enumerate(pairs) if own != theirs), len(stack.split(".")))

    return max(counts, key=shared, default=None)
