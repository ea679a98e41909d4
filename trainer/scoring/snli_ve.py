"""SNLI-VE's accuracy: whether an image entails a sentence, contradicts it or leaves it open.

Source: Xie et al., arXiv:1901.06706; no official script. ALBEF's VE.py computes the same accuracy.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from shards.annotations.snli_ve import LABELS


class SnliVeResult(NamedTuple):
    """Parts of 1, unrounded."""

    accuracy: float
    per_label: dict[str, float]
    """Over the pairs of each true label that occurs, in the order of LABELS."""
    num_pairs: dict[str, int]
    """Behind each of these."""


def score_snli_ve(labels: Mapping[str, str], predictions: Mapping[str, str]) -> SnliVeResult:
    """The share of pairs whose predicted label is the true one.

    Args:
        labels: one of LABELS by pair; at least one pair.
        predictions: of each of these pairs.
    """
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for pair, label in labels.items():
        right[label].append(predictions[pair] == label)
    seen = [label for label in LABELS if label in right]
    return SnliVeResult(
        accuracy=sum(map(sum, right.values())) / len(labels),
        per_label={label: sum(right[label]) / len(right[label]) for label in seen},
        num_pairs={label: len(right[label]) for label in seen},
    )
