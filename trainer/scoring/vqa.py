"""VQA v2's official accuracy: an answer is right as far as at least three of ten annotators gave it.

Source: vqaEval.py (GT-Vision-Lab/VQA; the copy in ALBEF is the same); Goyal et al., CVPR 2017 (arXiv:1612.00837).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from shards.vqa_text import normalise_prediction, strip_punctuation

QuestionId = int | str

AGREEING = 3
"""Annotators who make an answer right."""

CELL_OF_TYPE = {"yes/no": "yes_no", "number": "number", "other": "other"}
"""VQA's answer types, each with a name without a slash."""
CELLS = ("accuracy", *CELL_OF_TYPE.values())
"""What the validations of a training run count over, in the order of the vector: all questions, and each answer
type."""

_PARTS = 30
"""An accuracy over ten annotators is a whole number of thirtieths."""


class VqaAnnotation(NamedTuple):
    """What annotators said about one question."""

    answers: Sequence[str]
    """One of each annotator, as written; at least one."""
    answer_type: str
    question_type: str


@dataclass(frozen=True)
class VqaResult:
    """Accuracies in percent, unrounded."""

    accuracy: float
    per_answer_type: dict[str, float]
    """In the order in which the types first come, like the next."""
    per_question_type: dict[str, float]
    per_question: dict[QuestionId, float]

    def rounded(self, digits: int = 2) -> Self:
        """As the official script gives them."""
        return replace(
            self,
            accuracy=round(self.accuracy, digits),
            per_answer_type={name: round(value, digits) for name, value in self.per_answer_type.items()},
            per_question_type={name: round(value, digits) for name, value in self.per_question_type.items()},
            per_question={name: round(value, digits) for name, value in self.per_question.items()},
        )


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy of one answer, a part of 1: the mean over annotators of min(1, others who gave it / 3).

    The prediction loses punctuation, articles and number words. The annotators' answers lose punctuation alone, and
    only if they are not all equal as written: nothing matches ten times "none", since a prediction of "none" is "0".

    Args:
        prediction: as generated.
        answers: one of each annotator, as written; at least one.
    """
    return sum(min(1.0, others / AGREEING) for others in _agreeing_others(prediction, answers)) / len(answers)


def score_vqa(annotations: Mapping[QuestionId, VqaAnnotation], predictions: Mapping[QuestionId, str]) -> VqaResult:
    """The official accuracies. They are summed in the order of the annotations, as the script does, which matters in
    the last bit.

    Args:
        annotations: at least one.
        predictions: the answer to each of these questions.
    """
    per_question: dict[QuestionId, float] = {}
    answer_types: defaultdict[str, list[float]] = defaultdict(list)
    question_types: defaultdict[str, list[float]] = defaultdict(list)
    for question_id, annotation in annotations.items():
        accuracy = answer_accuracy(predictions[question_id], annotation.answers)
        per_question[question_id] = accuracy
        answer_types[annotation.answer_type].append(accuracy)
        question_types[annotation.question_type].append(accuracy)
    return VqaResult(
        accuracy=_percent([*per_question.values()]),
        per_answer_type={name: _percent(values) for name, values in answer_types.items()},
        per_question_type={name: _percent(values) for name, values in question_types.items()},
        per_question={name: 100 * value for name, value in per_question.items()},
    )


@dataclass
class VqaScores:
    """The official accuracy over all questions and over each answer type, as sums that merge by addition.

    With ten annotators to a question, as VQA has them, sums are whole numbers, and no value depends on how questions
    were split; with other numbers of annotators to rounding.
    """

    thirtieths: list[float]
    """By place in CELLS: the sum of the accuracies, times 30."""
    count: list[int]

    @classmethod
    def empty(cls) -> Self:
        return cls([0.0] * len(CELLS), [0] * len(CELLS))

    def add(self, generated: str, answers: Sequence[str], answer_type: str | None = None) -> None:
        """Count one answered question.

        Args:
            generated: as generated.
            answers: one of each annotator, as written; at least one.
            answer_type: VQA's; one that is none of its three counts in the accuracy over all alone.
        """
        agreement = sum(min(AGREEING, others) for others in _agreeing_others(generated, answers))
        earned = agreement * (_PARTS // AGREEING) / len(answers)
        for cell in {"accuracy", CELL_OF_TYPE.get(answer_type or "", "accuracy")}:
            place = CELLS.index(cell)
            self.thirtieths[place] += earned
            self.count[place] += 1

    def __add__(self, other: Self) -> Self:
        return type(self)(
            [one + another for one, another in zip(self.thirtieths, other.thirtieths, strict=True)],
            [one + another for one, another in zip(self.count, other.count, strict=True)],
        )

    def to_vector(self) -> list[float]:
        return [*self.thirtieths, *map(float, self.count)]

    def with_vector(self, vector: Sequence[float]) -> Self:
        half = len(CELLS)
        assert len(vector) == 2 * half, len(vector)
        return type(self)([float(value) for value in vector[:half]], [round(value) for value in vector[half:]])

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """Parts of 1 under `prefix/accuracy`, `prefix/yes_no`, `prefix/number` and `prefix/other`, for what was seen
        at least once."""
        return {
            f"{prefix}/{cell}": thirtieths / (_PARTS * count)
            for cell, thirtieths, count in zip(CELLS, self.thirtieths, self.count, strict=True)
            if count
        }

    def as_counts(self, prefix: str = "val") -> dict[str, int]:
        """Questions behind each of `as_metrics`: `prefix/count` for all, else the name of the metric + `/count`."""
        names = ("count", *(f"{cell}/count" for cell in CELLS[1:]))
        return {f"{prefix}/{name}": count for name, count in zip(names, self.count, strict=True) if count}


def _agreeing_others(prediction: str, answers: Sequence[str]) -> list[int]:
    """For each annotator, how many of the others gave the prediction."""
    given = normalise_prediction(prediction)
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    total = answers.count(given)
    return [total - (answer == given) for answer in answers]


def _percent(accuracies: Sequence[float]) -> float:
    return 100 * sum(accuracies) / len(accuracies)
