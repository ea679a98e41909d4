"""The losses as pure functions; each gives one value per row, so that weights and sums are the caller's.

Shapes: Q questions, R question-answer pairs, L answer tokens, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from shards.read.collate import IGNORED_LABEL


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each answer, averaged over its own tokens: (Q,) float32.

    Args:
        logits: (Q, L, V), in any precision; the sum over the vocabulary is done in float32.
        labels: (Q, L) int64, -100 where there is no token.
    """
    per_token = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED_LABEL
    )
    tokens = (labels != IGNORED_LABEL).sum(dim=1).clamp(min=1)
    return per_token.view_as(labels).sum(dim=1) / tokens


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Image-text matching (Li et al. 2021, ALBEF, section 3.2), two-way cross-entropy of each pair: (R,) float32.

    Args:
        logits: (R, 2), the second one for "belongs to the image".
        labels: (R,) int64, 1 for the image's own pair.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")
