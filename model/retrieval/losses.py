"""What brings a question to the page with its answer and away from others. Pure.

Shapes: Q questions, P pages, W pages at most that a question is compared with. `similarity` is (Q, P): cosines. All
give (Q,) losses of the questions, of which those without a known answer page mean nothing; none is ever nan.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.retrieval.batch import NONE, Asked


def contrastive(similarity: Tensor, asked: Asked, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021): the mean of the cross-entropies of the right page among those that the
    question is compared with, and of the question among those that are compared with its page.

    Candidates are of one document and of questions of one visit, so that the loss depends on no batch. A question
    whose answer the same page shows, or whose own page is not known, is no wrong one for that page.

    Args:
        scale: () what cosines are multiplied with.
    """
    logits = scale * similarity
    of_pages = F.cross_entropy(in_window(logits, asked.window, filling=-torch.inf), asked.answer, reduction="none")
    own = torch.arange(len(asked.answer), device=similarity.device)
    of_questions = F.cross_entropy(
        logits[:, _right(asked)].T.masked_fill(~_rivals(asked, similarity.shape[1]), -torch.inf), own, reduction="none"
    )
    return (of_pages + of_questions) / 2


def triplet(similarity: Tensor, asked: Asked, margin: float) -> Tensor:
    """max(0, margin - right + wrong), the mean over the wrong pages that a question is compared with; 0 without any."""
    found = in_window(similarity, asked.window, filling=0.0)
    right = found.gather(1, asked.answer[:, None])
    wrong = (asked.window != NONE).scatter(1, asked.answer[:, None], False)
    violation = F.relu(margin - right + found) * wrong
    return violation.sum(dim=1) / wrong.sum(dim=1).clamp(min=1)


def in_window(values: Tensor, window: Tensor, *, filling: float) -> Tensor:
    """(Q, P) to (Q, W): the pages of each window, and `filling` where there is none."""
    return values.gather(1, window.clamp(min=0)).masked_fill(window == NONE, filling)


def ranking(similarity: Tensor, window: Tensor) -> Tensor:
    """(Q, W) int64: the places of the pages of each window, the most similar first, of equals the first; then NONE."""
    order = in_window(similarity, window, filling=-torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.masked_fill(window.gather(1, order) == NONE, NONE)


def _right(asked: Asked) -> Tensor:
    """(Q,) the number of the right page of each question."""
    return asked.window.gather(1, asked.answer[:, None]).squeeze(1)


def _rivals(asked: Asked, num_pages: int) -> Tensor:
    """(Q, Q) bool: which questions the one of a row is told from on its page; itself, and those that are compared with
    this page while another one is right."""
    right, valid = _right(asked), asked.window != NONE
    compared = valid.new_zeros(len(right), num_pages)
    row = torch.arange(len(right), device=right.device)[:, None].expand_as(asked.window)
    compared[row[valid], asked.window[valid]] = True
    others = compared[:, right].T & (right[None, :] != right[:, None]) & (asked.weight > 0)[None, :]
    return others | torch.eye(len(right), dtype=torch.bool, device=right.device)
