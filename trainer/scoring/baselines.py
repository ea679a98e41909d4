"""What a model could score without looking: answers guessed from the question alone."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

from shards.format.records import Question, VqaQuestion
from shards.lower_case import normalise
from trainer.columns import aligned

MAJORITY, QUESTION_ONLY, MODEL = "majority_accuracy", "question_only_accuracy", "accuracy"
HARDLY = 0.02
"""Parts of 1 by which a model that has used its images is right more often than one that guesses from the questions."""


class Accuracy(NamedTuple):
    """Right answers out of the evaluated ones; questions without an answer are not evaluated."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        """0 to 100; 0 where nothing was evaluated."""
        return 100 * self.correct / self.total if self.total else 0.0


class Guesses:
    """What training questions and their answers tell of answers, without any image.

    A tie goes to the answer that sorts first.
    """

    def __init__(self, train: Iterable[Question | VqaQuestion]) -> None:
        counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
        for question in train:
            if question.answer is not None:
                for key in _keys(question):
                    counts[key][question.answer] += 1
        self._guesses = {key: min(found, key=lambda answer: (-found[answer], answer)) for key, found in counts.items()}

    @property
    def majority(self) -> str | None:
        """The most frequent answer of all; None without any."""
        return self._guesses.get(())

    def blind(self, question: Question | VqaQuestion) -> str | None:
        """The most frequent training answer to the same text, else type, else of all.

        Texts are the same when they differ in case and white space only. The type is GQA's (structural, semantic):
        `detailed` would give the answer away, since it ends in C where the answer of a verification is no. VQA's type
        of a question is how it begins.
        """
        return next((self._guesses[key] for key in _keys(question) if key in self._guesses), None)


def question_only_accuracy(train: Iterable[Question], evaluated: Iterable[Question]) -> Accuracy:
    """Answer each question by `Guesses.blind`. Answers are compared exactly, as GQA's official script does."""
    guesses = Guesses(train)
    correct = total = 0
    for question in evaluated:
        if question.answer is not None:
            correct += guesses.blind(question) == question.answer
            total += 1
    return Accuracy(correct, total)


def table(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """A model beside its baselines, and what that says; no line where one of the three is not known."""
    names = [f"{prefix}/{name}" for name in (MAJORITY, QUESTION_ONLY, MODEL)]
    if not all(name in metrics for name in names):
        return []
    majority, blind, model = (metrics[name] for name in names)
    rows = [
        (f"{prefix} accuracy", ""),
        ("the most frequent answer of training", _percent(majority)),
        ("the question alone: the most frequent answer to its words", _percent(blind)),
        ("this model", _percent(model)),
    ]
    guess, guessed = ("the questions alone give", blind) if blind >= majority else ("one answer to all gives", majority)
    if model - guessed >= HARDLY:
        verdict = f"looking at the images is worth {100 * (model - guessed):.1f} points"
    elif model >= guessed:
        verdict = f"{guess} as much: the images are not used yet (docs/from_scratch.md says what helps)"
    else:
        verdict = f"{guess} more: nothing is learnt from the images yet (docs/from_scratch.md)"
    return [*aligned(rows), verdict]


def _keys(question: Question | VqaQuestion) -> tuple[Hashable, ...]:
    """From the most telling to the least; tuples of different lengths, so that they never meet."""
    if isinstance(question, VqaQuestion):
        return (normalise(question.question),), (question.question_type, None), ()
    return (normalise(question.question),), (question.types.structural, question.types.semantic), ()


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %"
