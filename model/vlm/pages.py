"""Which page of a window shows the answer, as a vision-language model's own states tell it.

A page is the mean of the states of its image tokens, which are those of the shared prefix and know no question; a
question is the state of the last token before its answer. Shapes as in `model.vlm.batch`; D width, W pages.
"""

import torch
from torch import Tensor, nn

from model.vlm.batch import Windows

_SPACE = 256
"""Dimensions in which questions and pages are compared."""


class PageHead(nn.Module):
    """A dot product of a question and a page, each through a linear layer of its own.

    It has no place for a page by its number, so that a window may have any number of pages.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.question, self.page = nn.Linear(width, _SPACE), nn.Linear(width, _SPACE)

    def forward(self, states: Tensor, windows: Windows) -> Tensor:
        """(S, N, D) states to (T, W) float32: how likely each page shows the answer to each question; -inf without a
        page."""
        states = states.to(self.page.weight.dtype)
        asked = self.question(states.flatten(0, 1)[windows.at])
        pages = self.page(page_means(states, windows.page, windows.place.shape[1]))
        sequence = windows.at // states.shape[1]
        logits = torch.einsum("td,twd->tw", asked, pages[sequence]).float() / _SPACE**0.5
        return logits.masked_fill(windows.place < 0, -torch.inf)


def page_means(states: Tensor, page: Tensor, num_pages: int) -> Tensor:
    """(S, W, D): the mean of the states of each page's image tokens, summed in float32; 0 without any.

    Args:
        states: (S, N, D)
        page: (S, N) int64: whose token it is; -1 where it is no page's.
    """
    of_page = nn.functional.one_hot(page + 1, num_pages + 1)[..., 1:].float()  # (S, N, W)
    counts = of_page.sum(dim=1).clamp(min=1)
    return (torch.einsum("snw,snd->swd", of_page, states.float()) / counts[..., None]).to(states.dtype)


def in_window(order: Tensor, place: Tensor) -> Tensor:
    """(T, W) int64 numbers of the pages that were read, then -1, as places in the whole windows."""
    return place.gather(1, order.clamp(min=0)).where(order >= 0, -1)
