"""An answer chosen from a list: by the first token to a few candidates, then by whole answers to one.

Shapes: Q questions, C candidates of the list, k of them that are looked at, L tokens of a candidate.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from shards.read.collate import IGNORED_LABEL, TextCodec, pad


class Candidates(NamedTuple):
    """The answers of a list as a decoder writes them."""

    ids: Tensor
    """(C, L) int64: start token, then the answer"""
    labels: Tensor
    """(C, L) int64: the answer, then the end token; -100 at padding"""
    most: int
    """k: so many whole answers are looked at, those with the most likely first tokens."""
    double_first_token: bool
    """Whether the first token counts twice, as in ALBEF's own code (`rank_answer` of models/model_vqa.py)."""

    @classmethod
    def of(cls, answers: Sequence[str], codec: TextCodec, *, most: int, double_first_token: bool) -> Self:
        """The candidates of a list."""
        tokens = codec.answers(answers)
        ids, _ = pad([[codec.start_id, *answer] for answer in tokens], codec.pad_id)
        labels, _ = pad([[*answer, codec.end_id] for answer in tokens], IGNORED_LABEL)
        return cls(ids, labels, min(most, len(tokens)), double_first_token)

    def to(self, device: torch.device) -> Self:
        """The candidates on a device."""
        return self._replace(ids=self.ids.to(device), labels=self.labels.to(device))


class Ranking(NamedTuple):
    """The candidates of each question that were looked at, best first."""

    numbers: Tensor
    """(Q, k) places in the list"""
    probabilities: Tensor
    """(Q, k) float32, of each among these k"""


def rank(first: Tensor, whole: Callable[[Tensor], Tensor], candidates: Candidates) -> Ranking:
    """Rank a list of answers (Li et al. 2021, ALBEF, section 3.5).

    Args:
        first: (Q, vocabulary) log-probabilities of the first token.
        whole: (Q, k) places in the list -> (Q, k) log-probabilities of those answers, their end tokens included.
    """
    first_of_each = first[:, candidates.labels[:, 0]]
    likely, numbers = first_of_each.topk(candidates.most, dim=1)
    scores = whole(numbers)
    if candidates.double_first_token:
        scores = scores + likely
    order = scores.argsort(dim=1, descending=True, stable=True)
    return Ranking(numbers.gather(1, order), scores.softmax(dim=1).gather(1, order))


def log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """(..., L, vocabulary) logits and (..., L) labels, -100 where there is none, to (...): that of all labels."""
    chosen = logits.float().log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(labels == IGNORED_LABEL, 0.0).sum(dim=-1)
