"""What a model could score without looking: answers guessed from the question alone."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from shards.format.records import Question
from shards.lower_case import normalise


class Accuracy(NamedTuple):
    """Right answers out of the evaluated ones; questions without an answer are not evaluated."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        """0 to 100; 0 where nothing was evaluated."""
        return 100 * self.correct / self.total if self.total else 0.0


def question_only_accuracy(train: Iterable[Question], evaluated: Iterable[Question]) -> Accuracy:
    """Answer each question with the most frequent training answer of the same text, else type, else of all.

    Texts are the same when they differ in case and white space only. The type is (structural, semantic): GQA's
    `detailed` would give the answer away, since it ends in C where the answer of a verification is no. A tie goes to
    the answer that sorts first. Answers are compared exactly, as GQA's official script does.
    """
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for question in train:
        if question.answer is not None:
            for key in _keys(question):
                counts[key][question.answer] += 1
    guesses = {key: min(counter, key=lambda answer: (-counter[answer], answer)) for key, counter in counts.items()}
    correct = total = 0
    for question in evaluated:
        if question.answer is not None:
            guess = next((guesses[key] for key in _keys(question) if key in guesses), None)
            correct += guess == question.answer
            total += 1
    return Accuracy(correct, total)


def _keys(question: Question) -> tuple[Hashable, ...]:
    """From the most telling to the least; tuples of different lengths, so that they never meet."""
    return (normalise(question.question),), (question.types.structural, question.types.semantic), ()
