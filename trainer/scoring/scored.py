"""Answers that score in part, as LXMERT counts them: the mean of the scores that the labels give to what was said.

Source: `evaluate` of src/tasks/vqa_data.py and gqa_data.py, `oracle_score` of vqa.py and gqa.py (airsplay/lxmert).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

CELLS = ("accuracy", "oracle")
"""What the answers score, and what the best answer of the vocabulary would have: in the order of the vector."""

_PARTS = 10**6
"""Scores are added up as whole numbers of millionths, so that no sum depends on how questions were split."""

_LIMB = 2**24
"""A sum goes into a vector as two whole numbers below this, which fp32 still holds; 17 questions have more parts."""


@dataclass
class ScoredAnswers:
    """Both means as sums that merge by addition."""

    millionths: list[int]
    """By place in CELLS."""
    count: int

    @classmethod
    def empty(cls) -> Self:
        return cls([0] * len(CELLS), 0)

    def add(self, said: str, label: Mapping[str, float], vocabulary: Collection[str]) -> None:
        """Count one question.

        Args:
            label: answer -> score, from 0 to 1.
            vocabulary: the answers that can be said.
        """
        best = max((score for answer, score in label.items() if answer in vocabulary), default=0.0)
        for place, score in enumerate((label.get(said, 0.0), best)):
            self.millionths[place] += round(_PARTS * score)
        self.count += 1

    def __add__(self, other: Self) -> Self:
        millionths = [one + another for one, another in zip(self.millionths, other.millionths, strict=True)]
        return type(self)(millionths, self.count + other.count)

    def to_vector(self) -> list[float]:
        limbs = (limb for value in self.millionths for limb in divmod(value, _LIMB))
        return [*map(float, limbs), float(self.count)]

    def with_vector(self, vector: Sequence[float]) -> Self:
        *limbs, count = map(round, vector)
        assert len(limbs) == 2 * len(CELLS), len(vector)
        high, low = limbs[::2], limbs[1::2]
        return type(self)([one * _LIMB + other for one, other in zip(high, low, strict=True)], count)

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """Parts of 1 under `prefix/accuracy` and `prefix/oracle`, if anything was counted."""
        if not self.count:
            return {}
        values = zip(CELLS, self.millionths, strict=True)
        return {f"{prefix}/{cell}": value / (_PARTS * self.count) for cell, value in values}

    def as_counts(self, prefix: str = "val") -> dict[str, int]:
        """Questions with a label: `prefix/count`."""
        return {f"{prefix}/count": self.count} if self.count else {}
