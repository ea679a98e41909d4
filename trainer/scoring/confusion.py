"""Which answer is taken for which: how often the model said j where i is right, over the most frequent answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from shards.lower_case import normalise

MOST_NAMES = 10
OTHER = "(other)"
"""Every answer that is not among the most frequent."""


@dataclass(eq=False)
class Confusion:
    """Counts over the most frequent answers of a split; they merge over ranks by addition."""

    names: tuple[str, ...]
    """The most frequent first; OTHER stands behind them."""
    counts: np.ndarray
    """(N + 1, N + 1) int64: right answer by what was said."""

    @classmethod
    def over(cls, answers: Mapping[str, int], most: int = MOST_NAMES) -> Self:
        """Empty counts over the most frequent of some answers; of equally frequent ones the first by alphabet."""
        names = tuple(sorted(answers, key=lambda answer: (-answers[answer], answer))[:most])
        return cls(names, np.zeros((len(names) + 1,) * 2, dtype=np.int64))

    def __post_init__(self) -> None:
        self._places = {name: number for number, name in enumerate(self.names)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Confusion) and self.names == other.names and np.array_equal(self.counts, other.counts)

    def add(self, said: str, right: str) -> None:
        """Count an answer."""
        last = len(self.names)
        self.counts[self._places.get(right, last), self._places.get(normalise(said), last)] += 1

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of rows and columns."""
        return (*self.names, OTHER)

    def to_vector(self) -> list[float]:
        return self.counts.ravel().astype(float).tolist()

    def with_vector(self, vector: Sequence[float]) -> Self:
        return type(self)(self.names, np.rint(np.asarray(vector)).astype(np.int64).reshape(self.counts.shape))

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:  # noqa: ARG002 - it is looked at, not a number
        return {}

    def as_counts(self, prefix: str = "val") -> dict[str, int]:  # noqa: ARG002
        return {}
