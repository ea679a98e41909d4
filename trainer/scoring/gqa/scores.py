"""GQA's official scores as counts that merge by addition, so that no value depends on how questions were split.

The definitions are those of GQA's evaluation script (Hudson and Manning, CVPR 2019, section 4.4). Only balanced
questions are scored, and answers are compared as they are written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

METRICS = (
    "binary",
    "open",
    "accuracy",
    "consistency",
    "validity",
    "plausibility",
    "grounding",
    "distribution",
)
"""In the order in which the official script prints them; all in percent but the last, where lower is better."""

BREAKDOWNS = ("structural", "semantic", "steps", "length")

COMMON_ANSWERS = ("color", "material", "shape")
"""The valid and plausible answers of a question for what things have in common (`types.detailed` has "Common")."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class GqaQuestions:
    """Questions as columns: I known ids, of which M are balanced and scored. Ids are places 0 .. I - 1,
    texts are places in `texts`.

    An id is known if it is that of a question or if a scored question entails it.
    """

    texts: Sequence[str]
    """Answers, types and groups; predictions too, as soon as there are any."""
    gold: Numbers
    """(I,) the answer of each id; -1 where the question itself is not known."""
    scored: Numbers
    """(M,) the id of each scored question."""
    structural: Numbers
    """(M,) like `semantic` and `group`, -1 for none."""
    semantic: Numbers
    group: Numbers
    """(M,) the global group, within which distributions of answers are compared."""
    steps: Numbers
    """(M,) reasoning steps."""
    length: Numbers
    """(M,) words."""
    entailed: Numbers
    """(E,) ids that the scored questions entail, in their order, without the question itself."""
    entailed_starts: Numbers
    """(M + 1,) question m entails entailed[starts[m] : starts[m + 1]]."""


@dataclass(frozen=True, kw_only=True)
class GqaAnswers:
    """What was answered to such questions, and what is known of it."""

    predicted: Numbers
    """(I,) a place in the texts of the questions; -1 for no answer, which is a wrong one."""
    valid: NDArray[np.bool_] | None = None
    """(M,) whether the answer is among the possible ones of its question; None without choices."""
    plausible: NDArray[np.bool_] | None = None
    """(M,) whether it makes sense at all."""
    grounding: NDArray[np.float64] | None = None
    """(M,) attention on the objects that the question is about, see trainer/gqa/grounding.py; None without it."""


class Share(NamedTuple):
    """A mean in percent and the questions behind it."""

    percent: float
    questions: int


@dataclass(frozen=True)
class GqaScores:
    """Sums and counts of scored questions. Adding those of disjoint sets gives those of their union: exactly, but for
    grounding, a sum of floats that agrees to rounding. msgspec writes and reads them as JSON."""

    count: dict[str, int] = field(default_factory=dict)
    """Questions by cell: accuracy, binary, open, validity, plausibility, structural/query, steps/2, length/7, ..."""
    correct: dict[str, int] = field(default_factory=dict)
    """Right answers by cell; for validity and plausibility, valid and plausible ones."""
    entailing: dict[int, int] = field(default_factory=dict)
    """Correctly answered questions that entail n > 0 others, by n."""
    entailed_correct: dict[int, int] = field(default_factory=dict)
    """Right answers to what those entail, by n: counts, where a sum of means would depend on its order."""
    gold: dict[str, dict[str, int]] = field(default_factory=dict)
    """Global group -> answer -> count."""
    predicted: dict[str, dict[str, int]] = field(default_factory=dict)
    grounding_sum: float = 0.0
    grounded: int = 0
    """Questions behind that sum."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            count=_added(self.count, other.count),
            correct=_added(self.correct, other.correct),
            entailing=_added(self.entailing, other.entailing),
            entailed_correct=_added(self.entailed_correct, other.entailed_correct),
            gold=_added_tables(self.gold, other.gold),
            predicted=_added_tables(self.predicted, other.predicted),
            grounding_sum=self.grounding_sum + other.grounding_sum,
            grounded=self.grounded + other.grounded,
        )

    def as_metrics(self) -> dict[str, float | None]:
        """METRICS by name and in order; None where no question counts."""
        special = {
            "consistency": self._consistency,
            "grounding": self._grounding,
            "distribution": self._distribution,
        }
        return {name: special[name]() if name in special else self._percent(name) for name in METRICS}

    def breakdown(self, kind: str) -> dict[str, Share]:
        """Accuracy by structural type, semantic type, steps or length: one of BREAKDOWNS. Numbers sort as numbers."""
        names = [cell.removeprefix(f"{kind}/") for cell in self.count if cell.startswith(f"{kind}/")]
        names.sort(key=lambda name: (int(name) if name.isdecimal() else -1, name))
        shares = {}
        for name in names:
            cell = f"{kind}/{name}"
            shares[name] = Share(100 * self.correct[cell] / self.count[cell], self.count[cell])
        return shares

    def _percent(self, cell: str) -> float | None:
        count = self.count.get(cell, 0)
        return 100 * self.correct[cell] / count if count else None

    def _consistency(self) -> float | None:
        """The mean, over correctly answered questions that entail others, of the share of those answered correctly."""
        questions = sum(self.entailing.values())
        if not questions:
            return None
        return 100 * sum(self.entailed_correct[n] / n for n in sorted(self.entailing)) / questions

    def _grounding(self) -> float | None:
        return 100 * self.grounding_sum / self.grounded if self.grounded else None

    def _distribution(self) -> float | None:
        """Chi-square of the predicted against the true counts of each group's answers, weighted by its questions."""
        weighted = total = 0.0
        for group, gold in sorted(self.gold.items()):
            predicted = self.predicted.get(group, {})
            distance = sum((predicted.get(answer, 0) - count) ** 2 / count for answer, count in sorted(gold.items()))
            questions = sum(gold.values())
            weighted += questions * distance
            total += questions
        return weighted / total / 100 if total else None


def score_answers(
    questions: GqaQuestions, answers: GqaAnswers, *, part: Numbers | None = None, consistency: bool = True
) -> GqaScores:
    """The scores of the scored questions, or of a part of them.

    A rank that scores a part must know the true and the predicted answer of all that its part entails, for the
    consistency; in GQA a question entails questions of its own image only, so whoever has whole images knows them.

    Args:
        part: places among the M scored questions, each at most once.
        consistency: without it, an entailed question need not be known.
    """
    rows = np.arange(len(questions.scored)) if part is None else np.asarray(part, dtype=np.int64)
    right = (answers.predicted == questions.gold) & (questions.gold >= 0)
    scored = questions.scored[rows]
    hit = right[scored]
    cells = _Cells()
    everything = np.ones(len(rows), dtype=bool)
    is_open = _is_open(questions, rows)
    cells.add("accuracy", everything, hit)
    cells.add("binary", ~is_open, hit)
    cells.add("open", is_open, hit)
    for name, known in (("validity", answers.valid), ("plausibility", answers.plausible)):
        if known is not None:
            cells.add(name, everything, known[rows])
    cells.add_each("structural", questions.structural[rows], hit, questions.texts.__getitem__)
    cells.add_each("semantic", questions.semantic[rows], hit, questions.texts.__getitem__)
    cells.add_each("steps", questions.steps[rows], hit, str)
    cells.add_each("length", questions.length[rows], hit, str)
    entailing, entailed_correct = _entailed(questions, rows[hit], right) if consistency else ({}, {})
    group = questions.group[rows]
    grounding = None if answers.grounding is None else answers.grounding[rows]
    return GqaScores(
        count=cells.count,
        correct=cells.correct,
        entailing=entailing,
        entailed_correct=entailed_correct,
        gold=_answers_by_group(questions.texts, group, questions.gold[scored]),
        predicted=_answers_by_group(questions.texts, group, answers.predicted[scored]),
        grounding_sum=0.0 if grounding is None else float(grounding.sum()),
        grounded=0 if grounding is None else len(grounding),
    )


def entailed_by_correct(questions: GqaQuestions, answers: GqaAnswers) -> Numbers:
    """The ids that the consistency asks for: what the correctly answered questions entail, repetitions included."""
    right = answers.predicted[questions.scored] == questions.gold[questions.scored]
    return questions.entailed[np.repeat(right, np.diff(questions.entailed_starts))]


class _Cells:
    """Counts and right answers by cell."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.correct: dict[str, int] = {}

    def add(self, cell: str, member: NDArray[np.bool_], hit: NDArray[np.bool_]) -> None:
        self.count[cell] = int(member.sum())
        self.correct[cell] = int((member & hit).sum())

    def add_each(self, kind: str, values: Numbers, hit: NDArray[np.bool_], name: Callable[[int], str]) -> None:
        """A cell for each value; a negative one is none."""
        known = values >= 0
        counts = np.bincount(values[known])
        hits = np.bincount(values[known & hit], minlength=len(counts))
        for value in np.flatnonzero(counts).tolist():
            self.count[f"{kind}/{name(value)}"] = int(counts[value])
            self.correct[f"{kind}/{name(value)}"] = int(hits[value])


def _is_open(questions: GqaQuestions, rows: Numbers) -> NDArray[np.bool_]:
    """`query` questions; without a structural type, those whose answer is neither yes nor no."""
    structural, gold = questions.structural[rows], questions.gold[questions.scored[rows]]
    places = {name: place for place, name in enumerate(questions.texts) if name in ("query", "yes", "no")}
    is_query = structural == places.get("query", -2)
    is_yes_or_no = np.isin(gold, [places.get("yes", -2), places.get("no", -2)])
    return np.where(structural < 0, ~is_yes_or_no, is_query)


def _entailed(
    questions: GqaQuestions, correct_rows: Numbers, right: NDArray[np.bool_]
) -> tuple[dict[int, int], dict[int, int]]:
    before = np.concatenate([[0], np.cumsum(right[questions.entailed])])
    starts, ends = questions.entailed_starts[correct_rows], questions.entailed_starts[correct_rows + 1]
    sizes = ends - starts
    counts = np.bincount(sizes)
    hits = np.bincount(sizes, weights=before[ends] - before[starts])
    present = [n for n in np.flatnonzero(counts).tolist() if n > 0]
    return {n: int(counts[n]) for n in present}, {n: round(hits[n]) for n in present}


def _answers_by_group(texts: Sequence[str], groups: Numbers, answers: Numbers) -> dict[str, dict[str, int]]:
    known = (groups >= 0) & (answers >= 0)
    pairs, counts = np.unique(groups[known] * len(texts) + answers[known], return_counts=True)
    table: dict[str, dict[str, int]] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        group, answer = divmod(pair, len(texts))
        table.setdefault(texts[group], {})[texts[answer]] = count
    return table


def _added(left: Mapping[Any, int], right: Mapping[Any, int]) -> dict[Any, int]:
    return {key: left.get(key, 0) + right.get(key, 0) for key in {**left, **right}}


def _added_tables(
    left: Mapping[str, Mapping[str, int]], right: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    return {key: _added(left.get(key, {}), right.get(key, {})) for key in {**left, **right}}
