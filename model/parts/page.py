"""Which page of a window shows the answer: the loss on it and its ranking, whoever tells how likely each page is.

Shapes: Q questions, P pages.
"""

import torch
from torch import Tensor

from model.parts.seam import PartOutput


def page_loss(logits: Tensor, page: Tensor, weight: Tensor) -> PartOutput:
    """Cross-entropy of the page with the answer among those that were read; without it there is nothing to learn.

    Args:
        logits: (Q, P) float32
        page: (Q,) int64
        weight: (Q,) float32
    """
    own = logits.gather(1, page[:, None])[:, 0]
    is_read = own > -torch.inf
    losses, weight = logits.logsumexp(dim=1) - own.where(is_read, 0.0), weight * is_read
    summed = (losses * weight).sum()
    return PartOutput(summed, (summed.detach(), weight.sum()))


def ranking(logits: Tensor) -> Tensor:
    """(Q, P) int64: the places of the pages that were read, the most likely first, then -1."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order.where(logits.gather(1, order) > -torch.inf, -1)
