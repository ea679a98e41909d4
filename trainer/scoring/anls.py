"""Answers read from documents: ANLS and exact match by both published definitions, the answer's page, and hit@k.

Sources: Biten et al., ICCV 2019 (arXiv:1907.00490) for ANLS; metrics.py of rubenpt91/MP-DocVQA-Framework (Tito et al.
2022, arXiv:2212.05935) and src/metrics.py of GuiQuQu/GuiQuQu-mpdocvqa for how texts are compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np

Definition = Literal["framework", "guiququ"]
"""`framework` compares in lower case without white space at the ends, and gives nothing to a predicted "none", even
where it is right; `guiququ` compares texts as they are written."""

THRESHOLD = 0.5
"""A similarity below this is a wrong answer, not a misspelt one."""

HITS = (1, 3, 5)
LONG = 3
"""From so many pages on a document is long: the three best of fewer pages are all of them."""
ANSWER_CELLS = ("accuracy", "anls")
CELLS = (
    *ANSWER_CELLS,
    "page_accuracy",
    *(f"hit@{k}" for k in HITS),
    *(f"long_hit@{k}" for k in HITS),
)
"""What is counted, in the order of the vector; `long_` is over documents of at least LONG pages."""

_PARTS = 10**9
"""Similarities are added up as whole numbers of these, so that no sum depends on how questions were split."""
_LIMB = 2**24
"""A sum goes into a vector as three whole numbers, each of which fp32 still holds."""


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: the fewest characters to insert, delete or replace."""
    if len(one) < len(other):
        one, other = other, one
    above = list(range(len(other) + 1))
    for row, character in enumerate(one, start=1):
        left, current = row, [row]
        for column, another in enumerate(other, start=1):
            left = min(left + 1, above[column] + 1, above[column - 1] + (character != another))
            current.append(left)
        above = current
    return above[-1]


def similarity(one: str, other: str) -> float:
    """1 - edit distance / length of the longer text. Two empty texts are equal; GuiQuQu's code divides by 0 there."""
    longer = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longer if longer else 1.0


def anls(prediction: str, answers: Sequence[str], definition: Definition = "framework") -> float:
    """The similarity to the most similar of the answers (at least one), 0 if it is below the threshold."""
    said, known = _prepared(prediction, answers, definition)
    if definition == "framework" and said in ("", "none"):
        return 0.0
    best = max(similarity(answer, said) for answer in known)
    return best if best >= THRESHOLD else 0.0


def exact_match(prediction: str, answers: Sequence[str], definition: Definition = "framework") -> bool:
    """Whether the prediction is one of the answers."""
    said, known = _prepared(prediction, answers, definition)
    return said in known and not (definition == "framework" and said == "none")


class DocumentAnswer(NamedTuple):
    """What was said to a question."""

    answer: str
    pages: tuple[int, ...] = ()
    """Places in the question's window of pages, the most likely first; empty where no page was named."""
    is_ranking: bool = False
    """Whether `pages` goes on as far as any hit@k looks; else the first of them alone is known."""


class Truth(NamedTuple):
    """What is known of a question."""

    answers: Sequence[str]
    answer_page: int | None
    """Place in its window of pages."""
    num_pages: int


class Cells(NamedTuple):
    """What one answer counts: None where it does not count."""

    accuracy: int
    anls: float
    page_accuracy: int | None
    hits: tuple[int | None, ...]
    """For each of HITS."""

    def by_name(self, num_pages: int) -> Iterator[tuple[str, float]]:
        """(name in CELLS, value) of all that it counts in; the window has so many pages."""
        long_hits = self.hits if num_pages >= LONG else (None,) * len(HITS)
        values = (self.accuracy, self.anls, self.page_accuracy, *self.hits, *long_hits)
        return ((cell, value) for cell, value in zip(CELLS, values, strict=True) if value is not None)


def cells_of(said: DocumentAnswer, truth: Truth, definition: Definition = "framework") -> Cells:
    """Score an answer to a question with at least one known answer.

    A page of which nothing is known counts nowhere; nor does hit@k behind the first page where there is no ranking,
    since misses could not be told from what was not said.
    """
    page: int | None = None
    hits: tuple[int | None, ...] = (None,) * len(HITS)
    if truth.answer_page is not None and said.pages:
        page = int(said.pages[0] == truth.answer_page)
        hits = tuple(int(truth.answer_page in said.pages[:k]) if said.is_ranking or k == 1 else None for k in HITS)
    return Cells(
        int(exact_match(said.answer, truth.answers, definition)),
        anls(said.answer, truth.answers, definition),
        page,
        hits,
    )


def score_documents(
    truths: Mapping[str, Truth], answers: Mapping[str, DocumentAnswer], definition: Definition = "framework"
) -> dict[str, float]:
    """The means by name in CELLS, parts of 1, over what counts in each; one that nothing counts in is not there.

    Args:
        truths: by question id; at least one, each with an answer.
        answers: to each of them.
    """
    seen: dict[str, list[float]] = {cell: [] for cell in CELLS}
    for name, truth in truths.items():
        for cell, value in cells_of(answers[name], truth, definition).by_name(truth.num_pages):
            seen[cell].append(value)
    # NumPy's mean as in the framework: it adds up pairwise, which shows in the last digit.
    return {cell: float(np.mean(values)) for cell, values in seen.items() if values}


@dataclass
class DocumentScores:
    """The means of CELLS as sums and counts that merge by addition."""

    sums: list[int]
    """By place in CELLS, in billionths."""
    counts: list[int]

    @classmethod
    def empty(cls) -> Self:
        return cls([0] * len(CELLS), [0] * len(CELLS))

    def add(self, said: DocumentAnswer, truth: Truth, definition: Definition = "framework") -> Cells:
        """Count the answer to one question whose own is known; gives what it counted."""
        cells = cells_of(said, truth, definition)
        for cell, value in cells.by_name(truth.num_pages):
            place = CELLS.index(cell)
            self.sums[place] += round(_PARTS * value)
            self.counts[place] += 1
        return cells

    def __add__(self, other: Self) -> Self:
        return type(self)(
            [one + another for one, another in zip(self.sums, other.sums, strict=True)],
            [one + another for one, another in zip(self.counts, other.counts, strict=True)],
        )

    def to_vector(self) -> list[float]:
        limbs = (limb for value in self.sums for limb in (value // _LIMB**2, value // _LIMB % _LIMB, value % _LIMB))
        return [*map(float, limbs), *map(float, self.counts)]

    def with_vector(self, vector: Sequence[float]) -> Self:
        values = [round(value) for value in vector]
        assert len(values) == 4 * len(CELLS), len(values)
        limbs, counts = values[: 3 * len(CELLS)], values[3 * len(CELLS) :]
        parts = zip(limbs[::3], limbs[1::3], limbs[2::3], strict=True)
        return type(self)([(high * _LIMB + middle) * _LIMB + low for high, middle, low in parts], counts)

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """Parts of 1 under `prefix/` and the names of CELLS, for what was seen at least once."""
        return {
            f"{prefix}/{cell}": value / (_PARTS * count)
            for cell, value, count in zip(CELLS, self.sums, self.counts, strict=True)
            if count
        }

    def as_counts(self, prefix: str = "val") -> dict[str, int]:
        """Questions behind each of `as_metrics`: `prefix/count` for all, else the name of the metric + `/count`."""
        names = ("count", *(f"{cell}/count" for cell in CELLS[1:]))
        return {f"{prefix}/{name}": count for name, count in zip(names, self.counts, strict=True) if count}


def _prepared(prediction: str, answers: Sequence[str], definition: Definition) -> tuple[str, list[str]]:
    if definition == "guiququ":
        return prediction, list(answers)
    return prediction.lower().strip(), [answer.lower().strip() for answer in answers]
