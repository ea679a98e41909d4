"""LXMERT's files of VQA and GQA: questions with scores of answers, and the answers to them."""

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from shards.annotations.json_files import iterate_records
from shards.annotations.lxmert import QUESTION_FORM, AskedRecord, checked_label
from shards.annotations.seam import Advance
from shards.errors import DataError
from trainer.scoring.every_item import refuse_missing

ANSWERS_FORM = '[{"question_id": 1, "answer"}, ...], or [{"questionId": "1", "prediction"}, ...]'

QuestionId = int | str


class _Answered(msgspec.Struct, gc=False):
    question_id: int | None = None
    answer: str | None = None
    questionId: str | None = None
    prediction: str | None = None


def read_labels(path: Path, advance: Advance) -> dict[QuestionId, Mapping[str, float]]:
    """Answer -> score of each question: minival.json, valid.json, ...

    Raises:
        DataError: an entry is of another form, has no label, a score that is none, or is there twice; or there is none.
    """
    labels: dict[QuestionId, Mapping[str, float]] = {}
    for where, record in iterate_records(path, AskedRecord, QUESTION_FORM, advance):
        where = f"{where}: question {record.question_id!r}"
        if record.label is None:
            raise DataError(f"{where}: no label; the scores of test files are not public")
        if record.question_id in labels:
            raise DataError(f"{where}: is there twice; expected each question once")
        labels[record.question_id] = checked_label(record.label, where)
    if not labels:
        raise DataError(f"{path}: no question; expected {QUESTION_FORM}")
    return labels


def read_answers(path: Path, questions: Collection[QuestionId], advance: Advance) -> dict[QuestionId, str]:
    """The answer to each question, in the submission format of VQA or of GQA.

    Raises:
        DataError: an entry is of another form, about none of the questions or one that is answered already, or a
            question has no answer.
    """
    answers: dict[QuestionId, str] = {}
    for where, row in iterate_records(path, _Answered, ANSWERS_FORM, advance):
        vqa, gqa = (row.question_id, row.answer), (row.questionId, row.prediction)
        name, said = vqa if gqa == (None, None) else gqa
        if name is None or said is None or (gqa != (None, None) and vqa != (None, None)):
            raise DataError(f"{where}: expected {ANSWERS_FORM}")
        if name not in questions:
            raise DataError(f"{where}: question {name!r} is not among the questions; give the answers of that split")
        if name in answers:
            raise DataError(f"{where}: question {name!r} is answered a second time; expected one answer for each")
        answers[name] = said
    refuse_missing(path, answers, questions, "answer", "questions", "answer them too")
    return answers
