"""MP-DocVQA's files: questions with their answers and pages, and any system's answers to them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from shards.annotations.json_files import is_array, iterate_records, read_list
from shards.annotations.json_stream import open_annotations
from shards.annotations.mpdocvqa import QUESTIONS_FORM, AskedRecord, checked_page
from shards.annotations.seam import Advance
from shards.errors import DataError
from trainer.scoring.anls import HITS, DocumentAnswer, Truth
from trainer.scoring.every_item import refuse_missing

Form = TypeVar("Form")

NO_PAGE = -1
"""What the framework writes where a model pointed beside every page: a wrong one."""
LIST_FORM = '[{"questionId", "answer", "answer_page"}, ...]'
FRAMEWORK_FORM = 'the framework\'s {"Scores by samples": {questionId: {"pred_answer", "pred_answer_page"}}}'


class _Listed(msgspec.Struct, gc=False):
    questionId: int | str
    answer: str
    answer_page: int | None = None
    answer_pages: list[int] | None = None
    """A ranking, the most likely page first."""


class _Sampled(msgspec.Struct, gc=False):
    pred_answer: str
    pred_answer_page: int | None = None
    pred_answer_pages: list[int] | None = None
    """Ours beside the framework's: a ranking, the most likely page first."""


class _Framework(msgspec.Struct):
    samples: dict[str, _Sampled] = msgspec.field(name="Scores by samples")


def read_truths(path: Path, advance: Advance) -> dict[str, Truth]:
    """What is known of each question: val.json, train.json.

    Raises:
        DataError: the file is broken or of another form, a question is there twice, has no answer, or its answer page
            is not in its window; or there is none.
    """
    truths: dict[str, Truth] = {}
    for number, record in enumerate(read_list(path, "data", AskedRecord, QUESTIONS_FORM, advance), start=1):
        where = f"{path}: entry {number} of data: question {record.questionId!r}"
        if not record.answers:
            raise DataError(f"{where}: no answer; the answers of the test split are not public")
        if str(record.questionId) in truths:
            raise DataError(f"{where}: is there twice; expected each question once")
        page = checked_page(record, where)
        truths[str(record.questionId)] = Truth(record.answers, page, len(record.page_ids))
    if not truths:
        raise DataError(f"{path}: no question; expected {QUESTIONS_FORM}")
    return truths


def read_answers(path: Path, truths: Mapping[str, Truth], advance: Advance) -> dict[str, DocumentAnswer]:
    """The answer to each question, in the framework's JSON or as a plain list.

    Raises:
        DataError: the file is broken or of another form, an entry is about none of the questions or one that is
            answered already, names a page that its window does not have, or a question has no answer.
    """
    answers: dict[str, DocumentAnswer] = {}
    for where, name, said in _listed(path, advance) if is_array(path) else _sampled(path, advance):
        if name not in truths:
            raise DataError(f"{where}: question {name!r} is not among the questions; give the answers of that split")
        if name in answers:
            raise DataError(f"{where}: question {name!r} is answered a second time; expected one answer for each")
        _check_pages(said, truths[name].num_pages, f"{where}: question {name!r}")
        answers[name] = said
    refuse_missing(path, answers, truths, "answer", "questions", "answer them too")
    rankings = sum(said.is_ranking for said in answers.values())
    if 0 < rankings < len(answers):
        name = next(name for name, said in answers.items() if not said.is_ranking)
        raise DataError(
            f"{path}: {rankings:,} of {len(answers):,} answers rank the pages, that of question {name!r} does not; "
            "expected a ranking with every answer or with none"
        )
    return answers


def _listed(path: Path, advance: Advance) -> Iterator[tuple[str, str, DocumentAnswer]]:
    for where, row in iterate_records(path, _Listed, LIST_FORM, advance):
        yield where, str(row.questionId), _answer(row.answer, row.answer_page, row.answer_pages, where)


def _sampled(path: Path, advance: Advance) -> Iterator[tuple[str, str, DocumentAnswer]]:
    where = f"{path}: Scores by samples"
    for name, row in read_whole(path, _Framework, f"{FRAMEWORK_FORM}, or {LIST_FORM}", advance).samples.items():
        yield where, name, _answer(row.pred_answer, row.pred_answer_page, row.pred_answer_pages, f"{where}: {name!r}")


def read_whole(path: Path, form: type[Form], expected: str, advance: Advance) -> Form:
    """The content of a file of JSON that is one object.

    Args:
        expected: its form, for the message.

    Raises:
        DataError: the file cannot be read, is no JSON, or is of another form.
    """
    try:
        with open_annotations(path) as file:
            text = file.read()
        advance(len(text))
        return msgspec.json.decode(text, type=form)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: {error}; expected {expected}") from None


def _answer(text: str, page: int | None, ranking: list[int] | None, where: str) -> DocumentAnswer:
    if ranking:
        if page is not None and page != ranking[0]:
            raise DataError(f"{where}: the best page is {page}, but the ranking begins with {ranking[0]}")
        return DocumentAnswer(text, tuple(ranking), True)
    return DocumentAnswer(text, () if page is None else (page,))


def _check_pages(said: DocumentAnswer, num_pages: int, where: str) -> None:
    if said.pages == (NO_PAGE,):
        return
    outside = next((page for page in said.pages if not 0 <= page < num_pages), None)
    if outside is not None:
        raise DataError(f"{where}: page {outside}; its window has the pages 0 to {num_pages - 1}")
    if len(set(said.pages)) < len(said.pages):
        raise DataError(f"{where}: a page is ranked twice; expected each page once")
    if said.is_ranking and len(said.pages) < min(max(HITS), num_pages):
        raise DataError(
            f"{where}: {len(said.pages)} pages are ranked; expected {min(max(HITS), num_pages)} at least, which "
            f"hit@{max(HITS)} looks at"
        )
