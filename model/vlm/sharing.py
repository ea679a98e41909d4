"""Who sees whom in a sequence of a prefix and several questions, and where each token stands. Pure tensors.

A question sees the prefix and itself up to where it is, and the places of all questions go on from the end of the
prefix, as if each of them stood there alone. Shapes as in `model.vlm.batch`; K keys.
"""

import torch
from torch import Tensor

from model.vlm.batch import PADDING, PREFIX


def visible(segment: Tensor, place: Tensor, *, keys: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(S, N, K) bool: which keys each token sees; padding sees and is seen by nothing but padding.

    Args:
        segment: (S, N) of the tokens that look.
        place: (S, N)
        keys: segment and place (S, K) of what is looked at; None for the tokens themselves.
    """
    key_segment, key_place = (segment, place) if keys is None else keys
    own, other = segment[:, :, None], key_segment[:, None, :]
    before = key_place[:, None, :] <= place[:, :, None]
    return ((own == other) & before) | ((other == PREFIX) & (own > PREFIX))


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, N, K) bool to (S, 1, N, K): 0 where something is seen, else the lowest number of the dtype.

    Not minus infinity: a row of padding would become NaN.
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def positions(segment: Tensor, place: Tensor, prefix: Tensor | None = None) -> Tensor:
    """(S, N) int64, or (axes, S, N): where each token stands.

    Args:
        prefix: (axes, S, N) what a model with positions of several axes says of the tokens of the prefix; None where
            tokens are counted.
    """
    is_prefix = segment == PREFIX
    if prefix is None:
        return torch.where(is_prefix | (segment == PADDING), place, place + is_prefix.sum(dim=1, keepdim=True))
    start = prefix.masked_fill(~is_prefix, -1).amax(dim=(0, 2), keepdim=True) + 1
    return torch.where(is_prefix, prefix, place + start)
