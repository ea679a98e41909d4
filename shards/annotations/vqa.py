"""VQA v2's official files, and the lists that ALBEF trains on: questions, with the answers of every annotator.

Official: `{"data_subtype": "val2014", "questions": [{"question_id", "image_id", "question"}, ...]}` with
`{"annotations": [{"question_id", "image_id", "answers": [{"answer", "answer_id"}, ...], "answer_type", ...}, ...]}`
beside it. ALBEF's: `[{"question_id", "image", "question", "answer": [...] or "...", "dataset": "vqa" or "vg"}, ...]`,
which is how Visual Genome's questions come.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from shards.annotations.json_files import is_array, iterate_records, read_holder, read_list
from shards.annotations.on_disk import OnDisk
from shards.annotations.seam import Advance, Annotation
from shards.errors import DataError
from shards.format.records import VqaQuestion

ENDINGS = (".jpg", ".png", ".jpeg", ".webp", "")
"""Official files name an image by its number; a list of ALBEF's names the file."""

Id = int | str
QUESTIONS_FORM = 'VQA\'s {"questions": [{"question_id", "image_id", "question"}, ...]}'
ANNOTATIONS_FORM = (
    'VQA\'s {"annotations": [{"question_id", "answers": [{"answer", "answer_id"}, ...], "answer_type", '
    '"question_type"}, ...]}'
)
LIST_FORM = '[{"question_id", "image", "question", "answer", "dataset"}, ...], as ALBEF has it'
ANNOTATED_TWICE = "is annotated a second time; expected one annotation for each question"
SOURCES = ("vqa", "vg")


class AskedRecord(msgspec.Struct, gc=False):
    """An entry of the official questions."""

    question_id: Id
    image_id: Id
    question: str


class _Asked(msgspec.Struct):
    questions: list[AskedRecord]
    data_subtype: str | None = None


class AnswerRecord(msgspec.Struct, gc=False):
    """What one annotator answered."""

    answer: str
    answer_id: int


class AnnotationRecord(msgspec.Struct, gc=False):
    """An entry of the official annotations."""

    question_id: Id
    answers: Annotated[list[AnswerRecord], msgspec.Meta(min_length=1)]
    answer_type: str
    question_type: str
    multiple_choice_answer: str | None = None
    image_id: Id | None = None

    def fault(self) -> str | None:
        """What is wrong with its answers, to be said of its question."""
        if len({answer.answer_id for answer in self.answers}) < len(self.answers):
            return "has two answers with one answer_id; expected an answer_id for each annotator"
        return None


class _Listed(msgspec.Struct, gc=False):
    image: str
    question: str
    question_id: Id
    answer: list[str] | str | None = None
    dataset: str = "vqa"


class _Stored(msgspec.Struct, array_like=True, gc=False):
    """What the table keeps of an annotation."""

    answers: tuple[str, ...]
    answer: str
    answer_type: str
    question_type: str
    image_id: str | None
    used: bool = False


class Annotations(OnDisk):
    """The annotations by question id.

    Raises:
        DataError: a file is broken or of another form, a question is annotated twice, or two of its answers are of one
            annotator; the message names file and entry.
    """

    def __init__(self, paths: Sequence[Path], table: Path, advance: Advance) -> None:
        super().__init__(table)
        self.paths = paths
        self._database.execute("CREATE TABLE annotation (id TEXT PRIMARY KEY, body BLOB, used INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")
        for path in paths:
            records = read_list(path, "annotations", AnnotationRecord, ANNOTATIONS_FORM, advance)
            for number, record in enumerate(records, start=1):
                self._add(record, f"{path}: entry {number} of annotations: question {record.question_id!r}")

    def of(self, question_id: Id) -> _Stored | None:
        """The annotation of a question."""
        row = self._database.execute("SELECT body FROM annotation WHERE id = ?", (str(question_id),)).fetchone()
        if row is None:
            return None
        self._database.execute("UPDATE annotation SET used = 1 WHERE id = ?", (str(question_id),))
        return msgspec.msgpack.decode(row[0], type=_Stored)

    def finish(self) -> None:
        unused = self._database.execute("SELECT count(*), min(id) FROM annotation WHERE used = 0").fetchone()
        if unused[0]:
            names = ", ".join(map(str, self.paths))
            raise DataError(
                f"{names}: {unused[0]:,} annotations are of no question, such as question {unused[1]!r}; give the "
                "questions and the annotations of one split"
            )

    def _add(self, record: AnnotationRecord, where: str) -> None:
        fault = record.fault()
        if fault is not None:
            raise DataError(f"{where} {fault}")
        answers = tuple(answer.answer for answer in record.answers)
        stored = _Stored(
            answers,
            record.multiple_choice_answer or most_frequent(answers),
            record.answer_type,
            record.question_type,
            None if record.image_id is None else str(record.image_id),
        )
        try:
            self._database.execute(
                "INSERT INTO annotation VALUES (?, ?, 0)", (str(record.question_id), msgspec.msgpack.encode(stored))
            )
        except sqlite3.IntegrityError:
            raise DataError(f"{where} {ANNOTATED_TWICE}") from None


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that stands there most often; of several, the first in alphabetical order."""
    return min(answers, key=lambda answer: (-answers.count(answer), answer))


def read(path: Path, annotations: Annotations, advance: Advance) -> Iterator[Annotation]:
    """Yield the questions of an official file with their annotations, or those of a list of ALBEF's.

    Without annotations, questions have no answers, as in test files.

    Raises:
        DataError: the file is broken or of another form, or annotations were given and a question has none.
    """
    if is_array(path):
        yield from _listed(path, advance)
        return
    holder = read_holder(path, "questions", AskedRecord, QUESTIONS_FORM, advance, kind=_Asked)
    for number, asked in enumerate(holder.questions, start=1):
        where = f"{path}: entry {number} of questions: question {asked.question_id!r}"
        yield _annotation(asked, holder.data_subtype, annotations, where)


def image_name(image_id: Id, data_subtype: str | None) -> str:
    """COCO's name of an image without its ending, such as COCO_val2014_000000262148; the id where it is no number."""
    if isinstance(image_id, str) or data_subtype is None:
        return str(image_id)
    return f"COCO_{data_subtype}_{image_id:012d}"


def _annotation(asked: AskedRecord, subtype: str | None, annotations: Annotations, where: str) -> Annotation:
    found = annotations.of(asked.question_id) if annotations.paths else None
    if found is None and annotations.paths:
        names = ", ".join(map(str, annotations.paths))
        raise DataError(f"{where} has no annotation in {names}; give the questions and the annotations of one split")
    if found is not None and found.image_id is not None and found.image_id != str(asked.image_id):
        raise DataError(f"{where} is about image {asked.image_id!r}, its annotation about image {found.image_id!r}")
    question = VqaQuestion(question_id=str(asked.question_id), question=asked.question)
    if found is not None:
        question = msgspec.structs.replace(
            question,
            answer=found.answer,
            answers=found.answers,
            question_type=found.question_type,
            answer_type=found.answer_type,
        )
    return Annotation(str(asked.image_id), (image_name(asked.image_id, subtype),), question)


def _listed(path: Path, advance: Advance) -> Iterator[Annotation]:
    for where, row in iterate_records(path, _Listed, LIST_FORM, advance):
        if row.dataset not in SOURCES:
            raise DataError(f"{where}: dataset {row.dataset!r}; expected one of {', '.join(SOURCES)}")
        answers = () if row.answer is None else (row.answer,) if isinstance(row.answer, str) else tuple(row.answer)
        question = VqaQuestion(
            question_id=str(row.question_id) if row.dataset == "vqa" else f"vg_{row.question_id}",
            question=row.question,
            answer=most_frequent(answers) if answers else None,
            answers=answers,
            source=row.dataset,
        )
        yield Annotation(row.image.rpartition(".")[0] or row.image, (row.image,), question)
