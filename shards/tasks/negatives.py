"""Negatives for image-text matching, chosen from the data by hash: the same on every world size and resume."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from shards.format.records import Question
from shards.plan import EpochOrder, hash64
from shards.tasks.seam import Samples

QUESTION_TRIES = 8
_YES_NO = {"yes": "no", "no": "yes"}
_MAX_OPTION_WORDS = 4
_WORD = re.compile(r"[\w'-]+")

_MOST_KNOWN = 8192


class _Ordered(NamedTuple):
    """The answers of a group in alphabetical order."""

    counts: Mapping[str, int]
    """The group itself: while it is kept, no other one has its id."""
    answers: list[str]
    ends: list[int]
    """Of each answer, the count of all up to it."""


_known: dict[int, _Ordered] = {}
"""By the id of a group's counts."""


def answer_negative(
    question: Question, groups: Mapping[str, Mapping[str, int]], vocabulary: Mapping[str, int], draw: int
) -> str | None:
    """A wrong answer to the same question about the same image; None when the data offers none.

    yes/no is flipped for verify and logical questions; a choose question gets the other option that it names; others
    get another answer of the same global group, with the frequencies of the group.

    Args:
        groups: global group -> answer -> count, of the split.
        vocabulary: every answer of the split; a named option must be one of them.
        draw: a hash, which chooses.
    """
    if question.answer is None:
        return None
    structural = question.types.structural
    if structural in ("verify", "logical") and question.answer in _YES_NO:
        return _YES_NO[question.answer]
    if structural == "choose":
        other = _other_option(question, vocabulary)
        if other is not None:
            return other
    return _weighted_choice(groups.get(question.groups.global_ or "", {}), draw, excluded=question.answer)


def _other_option(question: Question, vocabulary: Mapping[str, int]) -> str | None:
    options = question.options or tuple(_named_options(question.question, vocabulary))
    others = [option for option in options if option != question.answer]
    return others[0] if question.answer in options and others else None


def _named_options(text: str, vocabulary: Mapping[str, int]) -> Iterable[str]:
    """The answers on both sides of an "or": the longest that ends the left side, the longest that starts the right."""
    left, found, right = text.lower().rpartition(" or ")
    if not found:
        return
    left_words, right_words = _WORD.findall(left), _WORD.findall(right)
    for count in range(min(_MAX_OPTION_WORDS, len(left_words)), 0, -1):
        if (option := " ".join(left_words[-count:])) in vocabulary:
            yield option
            break
    for start in range(len(right_words)):  # skips "the", "in the", "to the" in front of the option
        for count in range(min(_MAX_OPTION_WORDS, len(right_words) - start), 0, -1):
            if (option := " ".join(right_words[start : start + count])) in vocabulary:
                yield option
                return


def _weighted_choice(counts: Mapping[str, int], draw: int, *, excluded: str) -> str | None:
    """One of the answers in alphabetical order, each as wide as its count, `excluded` left out."""
    _, answers, ends = _in_order(counts)
    place = bisect_left(answers, excluded)
    start = width = 0
    if place < len(answers) and answers[place] == excluded:
        start, width = (ends[place - 1] if place else 0), counts[excluded]
    total = (ends[-1] if ends else 0) - width
    if total == 0:
        return None
    drawn = draw % total
    return answers[bisect_right(ends, drawn if drawn < start else drawn + width)]


def _in_order(counts: Mapping[str, int]) -> _Ordered:
    """Sorted once for a group of an index, and not for each of its questions."""
    found = _known.get(id(counts))
    if found is None or found.counts is not counts:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        answers = sorted(counts)
        found = _known[id(counts)] = _Ordered(counts, answers, list(accumulate(counts[name] for name in answers)))
    return found


def question_negative(image: int, draws: Sequence[int], epoch: EpochOrder, samples: Samples) -> Question | None:
    """A question, with its answer, that belongs to another image of the same block and is not asked of this one.

    Args:
        image: number of the image that the positive belongs to.
        draws: of `question_draws` for the positive: one for each try.
        epoch: the order that defines the blocks, and in evaluation that of epoch 0.
        samples: those of the split.

    Returns:
        None when the block offers none within 8 tries.
    """
    asked = samples.text_hashes(image)
    block = epoch.block(image)
    for draw in draws:
        visit = int(block[draw % len(block)])
        other = epoch.visits.image_of(visit)
        if other == image:
            continue
        positions = epoch.questions(visit)
        position = int(positions[(draw // len(block)) % len(positions)])
        if samples.text_hash(other, position) in asked:
            continue
        (candidate,) = samples.items(other, [position])
        if candidate.answer is not None:
            return candidate
    return None


def question_draws(epoch: EpochOrder, numbers: Sequence[int]) -> list[list[int]]:
    """The hashes that choose the question negative of each of these questions, one for each try."""
    tries = np.asarray(numbers, np.int64)[:, None] * QUESTION_TRIES + np.arange(QUESTION_TRIES)
    return hash64(epoch.order.seed, epoch.epoch, "question_negative", tries).tolist()


def answer_draws(epoch: EpochOrder, numbers: Sequence[int]) -> list[int]:
    """The hash that chooses the answer negative of each of these questions."""
    return hash64(epoch.order.seed, epoch.epoch, "answer_negative", np.asarray(numbers, np.int64)).tolist()
