"""The parameter groups of an optimizer: what is decayed, and by how much each learning rate is scaled."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(
    module: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """All parameters of a module, in groups of one weight decay and one scale of the learning rate.

    Args:
        weight_decay: of matrices; biases, norms and other parameters of fewer than two dimensions are not decayed.
        lr_scales: by parameter; None scales none, and the groups are the decayed and the others.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    if lr_scales is None:
        groups = {(1.0, True): _group(weight_decay), (1.0, False): _group(0.0)}
    for name, parameter in module.named_parameters():
        decayed, scale = parameter.ndim >= 2, 1.0 if lr_scales is None else lr_scales[name]
        group = groups.setdefault((scale, decayed), _group(weight_decay if decayed else 0.0))
        group["params"].append(parameter)
        if lr_scales is not None:
            group["lr_scale"] = scale
    return [group for group in groups.values() if group["params"]]


def _group(weight_decay: float) -> dict[str, Any]:
    return {"params": [], "weight_decay": weight_decay}
