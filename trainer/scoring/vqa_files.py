"""VQA's official files: questions, annotations and results, and how they have to fit together."""

from collections.abc import Collection
from pathlib import Path

import msgspec

from shards.annotations.json_blocks import iterate_array
from shards.annotations.json_files import read_list
from shards.annotations.seam import Advance
from shards.annotations.vqa import ANNOTATED_TWICE, ANNOTATIONS_FORM, QUESTIONS_FORM, AnnotationRecord, AskedRecord
from shards.errors import DataError
from trainer.scoring.every_item import refuse_missing
from trainer.scoring.vqa import QuestionId, VqaAnnotation


class _Result(msgspec.Struct, gc=False):
    question_id: QuestionId
    answer: str


def read_annotations(questions: Path, annotations: Path, advance: Advance) -> dict[QuestionId, VqaAnnotation]:
    """The annotations of a split, in the order of their file. Memory: about three times the file.

    Raises:
        DataError: a file is broken or of another form, a question or an annotation is there twice, one is there
            without the other, there is none, or a question has two answers of one annotator (the official script
            would leave out equal ones together).
    """
    asked: set[QuestionId] = set()
    for number, question in enumerate(read_list(questions, "questions", AskedRecord, QUESTIONS_FORM, advance), start=1):
        if question.question_id in asked:
            raise DataError(
                f"{questions}: entry {number} of questions: question {question.question_id!r} is there twice; "
                "expected each question once"
            )
        asked.add(question.question_id)
    known: dict[QuestionId, VqaAnnotation] = {}
    records = read_list(annotations, "annotations", AnnotationRecord, ANNOTATIONS_FORM, advance)
    for number, record in enumerate(records, start=1):
        fault = _annotation_fault(record, questions, asked, known)
        if fault is not None:
            raise DataError(f"{annotations}: entry {number} of annotations: question {record.question_id!r} {fault}")
        answers = tuple(answer.answer for answer in record.answers)
        known[record.question_id] = VqaAnnotation(answers, record.answer_type, record.question_type)
    without = [question_id for question_id in asked if question_id not in known]
    if without:
        raise DataError(
            f"{annotations}: no annotation for {len(without):,} of {len(asked):,} questions, such as "
            f"{min(without, key=str)!r}; give the annotations of the split that {questions} is of"
        )
    if not known:
        raise DataError(f"{annotations}: no annotation; expected {ANNOTATIONS_FORM}")
    return known


def read_results(path: Path, questions: Collection[QuestionId], advance: Advance) -> dict[QuestionId, str]:
    """The answers of a result file in VQA's submission format: [{"question_id": 1, "answer": "yes"}, ...].

    Args:
        questions: their ids.

    Raises:
        DataError: the file is broken or of another form, an answer is to none of the questions, or a question has no
            answer or two (entries count from 1). The official script has the last of several answers stand, and
            refuses the rest as well.
    """
    results: dict[QuestionId, str] = {}
    number = 0
    for block in iterate_array(path, _Result, advance):
        for result in block:
            number += 1
            if result.question_id not in questions:
                raise DataError(
                    f"{path}: entry {number}: question {result.question_id!r} is not among the questions; give the "
                    "results of the same split"
                )
            if result.question_id in results:
                raise DataError(
                    f"{path}: entry {number}: question {result.question_id!r} is answered a second time; expected one "
                    "answer for each question"
                )
            results[result.question_id] = result.answer
    refuse_missing(path, results, questions, "answer", "questions", "answer them too")
    return results


def _annotation_fault(
    record: AnnotationRecord, questions: Path, asked: Collection[QuestionId], known: Collection[QuestionId]
) -> str | None:
    if record.question_id not in asked:
        return f"is not in {questions}; give the questions and the annotations of one split"
    if record.question_id in known:
        return ANNOTATED_TWICE
    return record.fault()
