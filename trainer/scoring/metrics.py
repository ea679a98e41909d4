"""Validation metrics as mergeable sums and counts, so that no value depends on how questions were split over ranks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from shards.lower_case import normalise

STRUCTURAL_TYPES = ("verify", "query", "choose", "logical", "compare")
SEMANTIC_TYPES = ("obj", "attr", "cat", "rel", "global")
CLASSIFICATIONS = {"structural": STRUCTURAL_TYPES, "semantic": SEMANTIC_TYPES}
"""GQA's; a type that is not among them is counted as "other"."""

MOST_STEPS = 9
MOST_WORDS = 20
"""Questions of that many and more share a cell; in GQA's balanced testdev set, one of 12,578 has 9 steps."""

TRAINING_CELLS = (
    "",
    "binary",
    "open",
    *(f"structural/{name}" for name in (*STRUCTURAL_TYPES, "other")),
    *(f"semantic/{name}" for name in (*SEMANTIC_TYPES, "other")),
)
"""What the validations of a training run count over; "" is all questions."""

ANSWER_CELLS = (
    *TRAINING_CELLS,
    *(f"steps/{number}" for number in (*range(MOST_STEPS), f"{MOST_STEPS}+")),
    *(f"length/{number}" for number in (*range(MOST_WORDS), f"{MOST_WORDS}+")),
)
"""What exact match is counted over, in the order of the vector. The same on every rank."""


class Scores(Protocol):
    """Sums and counts that merge by addition. Adding the vectors of all ranks merges their scores."""

    def to_vector(self) -> list[float]:
        """The sums and counts, always of the same length and order. Add them in double precision: fp32 counts only
        to 16.7 million."""
        ...

    def with_vector(self, vector: Sequence[float]) -> Self:
        """Scores of this kind with the sums and counts of such a vector."""
        ...

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """Values by name, `prefix/` in front, for what was seen at least once; accuracies are parts of 1."""
        ...

    def as_counts(self, prefix: str = "val") -> dict[str, int]:
        """How much is behind each value: the name of the metric + `/count`, `prefix/count` for all."""
        ...


def merge_over_ranks(
    scores: Sequence[Scores], sum_over_ranks: Callable[[list[float]], Iterable[float]]
) -> list[Scores]:
    """The scores of all ranks together, with a single collective; every rank must call this.

    Args:
        scores: this rank's, the same kinds in the same order on every rank.
        sum_over_ranks: gives the element-wise sum of a vector over all ranks.
    """
    vectors = [score.to_vector() for score in scores]
    total = [float(value) for value in sum_over_ranks([value for vector in vectors for value in vector])]
    merged, start = [], 0
    for score, vector in zip(scores, vectors, strict=True):
        merged.append(score.with_vector(total[start : start + len(vector)]))
        start += len(vector)
    return merged


def is_exact_match(generated: str, gold: str) -> bool:
    """Exact match as GQA's official script counts it, after the generated text alone was lowered, stripped and had
    its runs of white space collapsed. The gold answer is compared as it is written."""
    return normalise(generated) == gold


@dataclass
class AnswerScores:
    """Exact match over all questions, binary and open ones, each structural and semantic type, and each number of
    reasoning steps and of words."""

    correct: list[int]
    """By position in ANSWER_CELLS."""
    count: list[int]

    @classmethod
    def empty(cls) -> Self:
        return cls([0] * len(ANSWER_CELLS), [0] * len(ANSWER_CELLS))

    def add(
        self,
        generated: str,
        gold: str,
        *,
        structural: str | None = None,
        semantic: str | None = None,
        steps: int | None = None,
        words: int | None = None,
    ) -> None:
        """Count one answered question; a type or a number of None counts in no cell of that classification.

        GQA calls `query` questions open and all others binary. Without a structural type, a question is binary if
        its gold answer is yes or no.
        """
        hit = is_exact_match(generated, gold)
        cells = _cells(gold, structural, semantic)
        cells += _numbered("steps", steps, MOST_STEPS) + _numbered("length", words, MOST_WORDS)
        for cell in cells:
            position = _POSITIONS[cell]
            self.correct[position] += hit
            self.count[position] += 1

    def __add__(self, other: Self) -> Self:
        return type(self)(_added(self.correct, other.correct), _added(self.count, other.count))

    def to_vector(self) -> list[float]:
        return [float(value) for value in (*self.correct, *self.count)]

    def with_vector(self, vector: Sequence[float]) -> Self:
        half = len(ANSWER_CELLS)
        assert len(vector) == 2 * half, len(vector)
        values = [round(value) for value in vector]
        return type(self)(values[:half], values[half:])

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """Parts of 1 under `prefix/accuracy`, `prefix/binary`, `prefix/open`, `prefix/structural/<type>`,
        `prefix/semantic/<type>`, `prefix/steps/<number>` and `prefix/length/<words>`, for what was seen at least once.
        """
        return {
            f"{prefix}/{cell or 'accuracy'}": correct / count
            for cell, correct, count in zip(ANSWER_CELLS, self.correct, self.count, strict=True)
            if count
        }

    def as_counts(self, prefix: str = "val") -> dict[str, int]:
        """Questions behind each of `as_metrics`: `prefix/count` for all, else the name of the metric + `/count`."""
        return {
            f"{prefix}/{cell}/count" if cell else f"{prefix}/count": count
            for cell, count in zip(ANSWER_CELLS, self.count, strict=True)
            if count
        }


_POSITIONS = {cell: position for position, cell in enumerate(ANSWER_CELLS)}


def _cells(gold: str, structural: str | None, semantic: str | None) -> list[str]:
    is_open = gold not in ("yes", "no") if structural is None else structural == "query"
    cells = ["", "open" if is_open else "binary"]
    if structural is not None:
        cells.append(f"structural/{structural if structural in STRUCTURAL_TYPES else 'other'}")
    if semantic is not None:
        cells.append(f"semantic/{semantic if semantic in SEMANTIC_TYPES else 'other'}")
    return cells


def _numbered(kind: str, number: int | None, most: int) -> list[str]:
    return [] if number is None else [f"{kind}/{number if number < most else f'{most}+'}"]


def _added(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(left, right, strict=True)]


@dataclass(frozen=True)
class Share:
    """How many of those that were seen were right, under a name."""

    name: str
    correct: int = 0
    count: int = 0

    def __iter__(self) -> Iterator[str | int]:
        return iter((self.name, self.correct, self.count))

    def __add__(self, other: Self) -> Self:
        assert self.name == other.name, (self.name, other.name)
        return type(self)(self.name, self.correct + other.correct, self.count + other.count)

    def to_vector(self) -> list[float]:
        return [float(self.correct), float(self.count)]

    def with_vector(self, vector: Sequence[float]) -> Self:
        correct, count = vector
        return type(self)(self.name, round(correct), round(count))

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """`prefix/<name>`, a part of 1; empty where nothing was seen."""
        return {f"{prefix}/{self.name}": self.correct / self.count} if self.count else {}

    def as_counts(self, prefix: str = "val") -> dict[str, int]:
        return {f"{prefix}/{self.name}/count": self.count} if self.count else {}


@dataclass
class LossSums:
    """The weighted sum and the weight (usually a number of questions) of each part of the loss.

    Sums of floats depend on their order in the last bits: values of different splits agree to rounding, about 1e-15
    relative per addition, where the counts of the other scores agree exactly.
    """

    sums: dict[str, float]
    """By name of the part; the order in which the parts were named is the order of the vector."""
    weights: dict[str, float]

    @classmethod
    def empty(cls, parts: Sequence[str]) -> Self:
        """Nothing seen yet of these parts, which every rank names in the same order."""
        return cls(dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 0.0))

    def add(self, part: str, weighted_sum: float, weight: float) -> None:
        """Take in a sum over questions of weight * loss, and the sum of those weights."""
        self.sums[part] += weighted_sum
        self.weights[part] += weight

    def __add__(self, other: Self) -> Self:
        assert list(self.sums) == list(other.sums), (list(self.sums), list(other.sums))
        return type(self)(
            {part: value + other.sums[part] for part, value in self.sums.items()},
            {part: value + other.weights[part] for part, value in self.weights.items()},
        )

    def to_vector(self) -> list[float]:
        return [*self.sums.values(), *self.weights.values()]

    def with_vector(self, vector: Sequence[float]) -> Self:
        half = len(self.sums)
        assert len(vector) == 2 * half, (len(vector), half)
        return type(self)(
            {part: float(value) for part, value in zip(self.sums, vector[:half], strict=True)},
            {part: float(value) for part, value in zip(self.sums, vector[half:], strict=True)},
        )

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """`prefix/<part>_loss`, the weighted mean of each part that has weight."""
        return {
            f"{prefix}/{part}_loss": value / self.weights[part]
            for part, value in self.sums.items()
            if self.weights[part]
        }

    def as_counts(self, prefix: str = "val") -> dict[str, int]:  # noqa: ARG002 - weights are no counts
        return {}
