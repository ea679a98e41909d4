"""The files of a GQA evaluation that say what was answered, and which answers make sense."""

from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.annotations.json_blocks import iterate_array, iterate_object
from shards.errors import DataError
from trainer.scoring.gqa.questions import QuestionSet, refuse_unseen, scored_places
from trainer.scoring.gqa.scenes import Advance
from trainer.scoring.gqa.scores import COMMON_ANSWERS, Numbers

NORMALIZATIONS: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "spaces": lambda text: " ".join(text.split()),
    "period": lambda text: text.rstrip().removesuffix("."),
}
"""What may be done to predictions, in this order; the true answers are compared as they are written."""


class _Prediction(msgspec.Struct, gc=False, rename="camel"):
    question_id: str
    prediction: str


class _Choice(msgspec.Struct):
    valid: list[str]
    plausible: list[str]


class Predictions(NamedTuple):
    """Answers by question."""

    predicted: Numbers
    """(I,) places in the texts of the questions; -1 for none."""
    num_entries: int
    num_unknown: int
    """Entries whose question is not among the questions."""


def read_predictions(
    path: Path,
    questions: QuestionSet,
    advance: Advance,
    *,
    normalize: Collection[str] = (),
    ignore_unknown: bool = False,
) -> Predictions:
    """Read predictions in GQA's submission format: [{"questionId": "...", "prediction": "..."}, ...].

    Args:
        normalize: some of NORMALIZATIONS.
        ignore_unknown: let answers to other questions pass.

    Raises:
        DataError: broken JSON (byte offset), an entry of another form, an id that is not among the questions, or two
            answers to one question (entries count from 1).
    """
    columns = questions.columns
    numbers, answers = [], []
    unknown: str | None = None
    clean = _normalization(normalize)
    for block in iterate_array(path, _Prediction, advance):
        found = questions.ids.find([entry.question_id for entry in block])
        found[(found >= 0) & (columns.gold[found] < 0)] = -1  # an id that others entail, not a question
        if unknown is None and (found < 0).any():
            unknown = block[int(np.argmax(found < 0))].question_id
        numbers.append(found)
        answers.append(questions.texts.number([clean(entry.prediction) for entry in block]))
    number, answer = np.concatenate(numbers), np.concatenate(answers)
    known = number >= 0
    if unknown is not None and not ignore_unknown:
        raise DataError(
            f"{path}: entry {int(np.argmin(known)) + 1}: question {unknown!r} is not among the questions, like "
            f"{int((~known).sum()):,} of {len(known):,} entries; give the questions that were answered, or pass "
            "--unknown ignore"
        )
    predicted = np.full(len(columns.gold), -1, dtype=np.int64)
    predicted[number[known]] = answer[known]
    differs = known & (predicted[number] != answer)
    if differs.any():
        entry = int(np.argmax(differs))
        name, given = questions.ids.texts[number[entry]], questions.texts.texts[answer[entry]]
        raise DataError(
            f"{path}: entry {entry + 1}: question {name!r} is answered by {given!r} here and by "
            f"{questions.texts.texts[predicted[number[entry]]]!r} elsewhere; expected one answer for each question"
        )
    return Predictions(predicted, len(known), int((~known).sum()))


def read_choices(
    path: Path, questions: QuestionSet, predicted: Numbers, advance: Advance
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which answers are valid (possible for their question) and plausible, as GQA's choices say.

    Returns:
        Two of (M,), over the scored questions.

    Raises:
        DataError: broken JSON (byte offset), a record of another form, or a scored question without choices.
    """
    columns, texts = questions.columns, questions.texts.texts
    answers = predicted[columns.scored]
    valid, plausible, seen = (np.zeros(len(answers), dtype=bool) for _ in range(3))
    for block in iterate_object(path, _Choice, advance):
        choices = list(block.values())
        places = scored_places(questions, block)
        seen[places[places >= 0]] = True
        for entry in np.flatnonzero(places >= 0).tolist():
            row = int(places[entry])
            if answers[row] >= 0:
                text, choice, common = texts[answers[row]], choices[entry], questions.common[row]
                valid[row] = text in (COMMON_ANSWERS if common else choice.valid)
                plausible[row] = text in (COMMON_ANSWERS if common else choice.plausible)
    refuse_unseen(path, "choices", seen, questions)
    return valid, plausible


def _normalization(names: Collection[str]) -> Callable[[str], str]:
    """All of the named changes as one, which remembers the texts that it has seen."""

    @lru_cache(maxsize=1 << 16)
    def clean(text: str) -> str:
        for name, change in NORMALIZATIONS.items():
            text = change(text) if name in names else text
        return text

    return clean if names else str
