"""What a reader learns beside T5: where words stand, the tokens that stand for pages, and which page has the answer.

Shapes: E readings of L tokens, Q questions, P places for pages, T page tokens, D width.
"""

import torch
from torch import Tensor, nn

from model.reader.batch import GRID


class BoxEmbeddings(nn.Module):
    """Where a word stands on its page (Hi-VT5's spatial embedding): the embeddings of its four sides added up, then
    LayerNorm, dropout and a linear layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.x, self.y = nn.Embedding(GRID + 1, width), nn.Embedding(GRID + 1, width)
        self.norm, self.dropout = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)
        self.linear = nn.Linear(width, width)

    def forward(self, boxes: Tensor) -> Tensor:
        """(E, L, 4) int64 to (E, L, D)."""
        left, top, right, bottom = boxes.unbind(dim=-1)
        return self.linear(self.dropout(self.norm(self.x(left) + self.y(top) + self.x(right) + self.y(bottom))))


class PageTokens(nn.Module):
    """Embeddings of page tokens in front of a T5 whose own embeddings are frozen.

    Args:
        start: (T, D) what they begin as.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.detach().clone())

    def forward(self, words: Tensor) -> Tensor:
        """(E, L, D) embedded tokens with these in place of the first T."""
        own = self.weight.to(words.dtype).expand(len(words), -1, -1)
        return torch.cat([own, words[:, own.shape[1] :]], dim=1)


class PageHead(nn.Module):
    """Which page of a window shows the answer: one linear layer over the states of all page tokens of all pages.

    A page that is not read is zeros, and cannot be named.
    """

    def __init__(self, *, max_pages: int, page_tokens: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(max_pages * page_tokens * width, max_pages)

    def forward(self, pages: Tensor, question: Tensor, place: Tensor, num_questions: int) -> Tensor:
        """(E, T, D) page states, whose they are and where they stand, to (Q, P) float32 logits; -inf without a page."""
        places = self.linear.out_features
        laid = pages.new_zeros(num_questions, places, pages[0].numel())
        laid = laid.index_put((question, place), pages.flatten(1))
        is_read = torch.zeros(num_questions, places, dtype=torch.bool, device=pages.device)
        is_read[question, place] = True
        return self.linear(laid.flatten(1)).float().masked_fill(~is_read, -torch.inf)
