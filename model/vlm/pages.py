"""Which page of a window shows the answer, as a vision-language model's own states tell it.

A question is the state of the last token before its answer. It looks at the image tokens of the shared prefix, whose
states know no question, and a page is as likely as they answer it. Shapes as in `model.vlm.batch`; D width, W pages.
"""

import torch
from torch import Tensor, nn

from model.vlm.batch import Windows

_SPACE = 256
"""Dimensions in which questions and image tokens are compared."""


class PageFinder(nn.Module):
    """Dot products of a question and the image tokens, each through a linear layer of its own, pooled for each page:
    the logarithm of the mean of their exponentials.

    What is asked for stands on a few of a page's tokens, and a mean of the states themselves would drown it. A page
    has no more weight for having more tokens, and no place by its number, so that a window may have any number of
    pages.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.question, self.page = nn.Linear(width, _SPACE), nn.Linear(width, _SPACE)
        for linear in (self.question, self.page):
            # At a rate that suits adapters, weights of the usual size turn too slowly: these are an eighth of it, and
            # their dot products are not divided by the root of the dimensions.
            nn.init.normal_(linear.weight, std=width**-0.5 / 8)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor, windows: Windows) -> Tensor:
        """(S, N, D) states to (T, W) float32: how likely each page shows the answer to each question; -inf without a
        page."""
        states = states.to(self.page.weight.dtype)
        asked, shown = self.question(states.flatten(0, 1)[windows.at]), self.page(states)
        sequence = windows.at // states.shape[1]
        # With every sequence, and then its own taken: to copy a sequence for each of its questions would cost more.
        found = torch.einsum("td,snd->tsn", asked, shown)[
            torch.arange(len(asked), device=asked.device), sequence
        ].float()
        logits = log_mean_exp(found, windows.page[sequence], windows.place.shape[1])
        return logits.masked_fill(windows.place < 0, -torch.inf)


def log_mean_exp(found: Tensor, page: Tensor, num_pages: int) -> Tensor:
    """(T, W): over the tokens of each page; the lowest number of the dtype, or nearly, without any.

    Args:
        found: (T, N) float32
        page: (T, N) int64: whose token it is; -1 where it is no page's.
    """
    lowest = torch.finfo(found.dtype).min  # not -inf: without a token its gradient would be NaN
    pooled = []
    for number in range(num_pages):
        own = page == number
        total = found.masked_fill(~own, lowest).logsumexp(dim=1)
        pooled.append(total - own.sum(dim=1).clamp(min=1).log())
    return torch.stack(pooled, dim=1)


def in_window(order: Tensor, place: Tensor) -> Tensor:
    """(T, W) int64 numbers of the pages that were read, then -1, as places in the whole windows."""
    return place.gather(1, order.clamp(min=0)).where(order >= 0, -1)
