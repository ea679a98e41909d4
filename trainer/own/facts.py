"""What a recipe is chosen by: sizes that shards and rows tell."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from shards.format.index import SplitIndex
from shards.plan import Visits

MOST_QUESTIONS = 16
"""Of a visit: an image is read once for so many."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
"""A word or a sign, as a WordPiece tokenizer sets them apart before it looks words up."""


class Facts(NamedTuple):
    """Sizes of a data set; of texts in words, each sign counted as one."""

    train_images: int
    val_images: int
    train_questions: int
    val_questions: int
    most_per_image: int
    """Questions of the training image with the most."""
    train_visits: int
    """Visits of an epoch, with at most MOST_QUESTIONS questions each."""
    answers: int
    """Different answers in training."""
    commonest: str
    """The most frequent answer of training."""
    commonest_share: float
    """Part of the training questions that it answers."""
    words: int
    """Different words of the training texts."""
    characters: int
    """Different characters in them."""
    longest_question: int
    longest_answer: int
    short_side: int
    """Pixels of the shorter side of the middlemost image."""
    same_questions: bool
    """Whether every training image is asked the same."""
    unseen: float
    """Part of the validation questions whose answer does not occur in training."""


def gather(train: SplitIndex, val: SplitIndex, questions: Sequence[str], short_sides: Iterable[int]) -> Facts:
    """The facts of a data set.

    Args:
        questions: the texts of the training questions.
        short_sides: pixels of the shorter side of each image.
    """
    texts = [words(text) for text in (*questions, *train.answers)]
    vocabulary = {word for text in texts for word in text}
    commonest = min(train.answers, key=lambda answer: (-train.answers[answer], answer))
    return Facts(
        train_images=train.counts["images"],
        val_images=val.counts["images"],
        train_questions=train.counts["questions"],
        val_questions=val.counts["questions"],
        most_per_image=int(train.num_questions.max()),
        train_visits=len(Visits(train.num_questions, MOST_QUESTIONS)),
        answers=len(train.answers),
        commonest=commonest,
        commonest_share=train.answers[commonest] / sum(train.answers.values()),
        words=len(vocabulary),
        characters=len({character for word in vocabulary for character in word}),
        longest_question=max((len(text) for text in texts[: len(questions)]), default=1),
        longest_answer=max(map(len, texts[len(questions) :]), default=1),
        short_side=round(median(short_sides)),
        same_questions=len(set(questions)) * train.counts["images"] == train.counts["questions"] == len(questions),
        unseen=_unseen(train.answers, val.answers),
    )


def words(text: str) -> list[str]:
    """The words and signs of a text in lower case."""
    return _TOKEN.findall(text.lower())


def _unseen(train: Mapping[str, int], val: Mapping[str, int]) -> float:
    counts = Counter(val)
    return sum(count for answer, count in counts.items() if answer not in train) / max(1, counts.total())
