"""Precision and recall of matching at every threshold, from counts that merge over ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLDS = 127
"""Evenly spaced over [0, 1], as TensorBoard's curves have them."""


class PrecisionRecall(NamedTuple):
    """(THRESHOLDS,) each, by rising threshold: a pair is taken to match where its probability is at least that."""

    true_positives: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    true_negatives: NDArray[np.float64]
    false_negatives: NDArray[np.float64]

    @property
    def precision(self) -> NDArray[np.float64]:
        """Of the pairs taken to match, those that do; 0 where there is none."""
        return self.true_positives / np.maximum(self.true_positives + self.false_positives, 1)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Of the pairs that match, those taken to; 0 where there is none."""
        return self.true_positives / np.maximum(self.true_positives + self.false_negatives, 1)


def _empty() -> NDArray[np.int64]:
    return np.zeros((2, THRESHOLDS), dtype=np.int64)


@dataclass(eq=False)
class MatchingCurve:
    """Pairs by the highest threshold that their probability reaches: those that do not match, and those that do."""

    counts: NDArray[np.int64] = field(default_factory=_empty)
    """(2, THRESHOLDS)"""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MatchingCurve) and np.array_equal(self.counts, other.counts)

    def add(self, probabilities: ArrayLike, matches: Iterable[int]) -> None:
        """Count pairs: (R,) probabilities in [0, 1], and 1 for each pair that matches, 0 for each that does not. NaN
        of a model that has diverged reaches no threshold but 0."""
        known = np.nan_to_num(np.asarray(probabilities, dtype=np.float64))
        reached = np.floor(known * (THRESHOLDS - 1)).astype(np.int64)
        np.add.at(self.counts, (np.fromiter(matches, dtype=np.int64, count=len(reached)), reached), 1)

    def precision_recall(self) -> PrecisionRecall:
        """The curve; all 0 where nothing was counted."""
        at_least = self.counts[:, ::-1].cumsum(axis=1)[:, ::-1].astype(np.float64)
        false, true = at_least
        all_false, all_true = at_least[:, 0]
        return PrecisionRecall(true, false, all_false - false, all_true - true)

    def to_vector(self) -> list[float]:
        return self.counts.ravel().astype(float).tolist()

    def with_vector(self, vector: Sequence[float]) -> Self:
        return type(self)(np.rint(np.asarray(vector)).astype(np.int64).reshape(self.counts.shape))

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:  # noqa: ARG002 - a curve, not a number
        return {}

    def as_counts(self, prefix: str = "val") -> dict[str, int]:  # noqa: ARG002
        return {}
