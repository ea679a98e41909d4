"""MP-DocVQA's official files: questions about windows of up to 20 pages, and IMDB files with the words of the pages.

`{"dataset_name", "data": [{"questionId", "question", "doc_id", "page_ids", "answers", "answer_page_idx", "data_split"},
...]}`; the test split has neither answers nor answer pages. A page is the image `{page_id}.jpg`.
"""

import math
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from shards.annotations.json_files import read_list
from shards.annotations.npy_records import read_npy_records
from shards.annotations.on_disk import OnDisk
from shards.annotations.seam import Advance, Annotation
from shards.errors import DataError
from shards.format.documents import PageBox, ReadQuestion, Words

ENDINGS = (".jpg", ".png", ".jpeg", ".webp")
QUESTIONS_FORM = (
    'MP-DocVQA\'s {"data": [{"questionId", "question", "doc_id", "page_ids", "answers", "answer_page_idx"}, ...]}'
)
IMDB_FORM = "an IMDB file of MP-DocVQA: image_name, ocr_tokens and ocr_normalized_boxes with an entry for each page"

BOX_DIGITS = 4
"""Of a box in parts of the page: a third of a pixel on a page of 3,000."""
_BESIDE_THE_PAGE = 0.02
"""An OCR may draw a box over the edge of its page by so much; what is further out is no part of a page."""


class AskedRecord(msgspec.Struct, gc=False):
    """An entry of the questions."""

    questionId: int | str
    question: str
    doc_id: str
    page_ids: list[str]
    answers: list[str] | None = None
    answer_page_idx: int | None = None


class _ImdbRecord(msgspec.Struct, gc=False):
    image_name: list[str]
    ocr_tokens: list[list[str]]
    ocr_normalized_boxes: list[list[PageBox]]


class PageWords(OnDisk):
    """The words of pages by name.

    Raises:
        DataError: a file is no IMDB file, or would do more when it is read than hold data; the message names file and
            record.
    """

    def __init__(self, paths: Sequence[Path], table: Path, advance: Advance) -> None:
        super().__init__(table)
        self.paths = paths
        self._database.execute("CREATE TABLE page (name TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID")
        self._database.execute("BEGIN")
        for path in paths:
            for where, record in read_npy_records(path, advance):
                self._add(where, record)

    def of(self, pages: Sequence[str], where: str) -> dict[str, Words]:
        """Those of some pages; `where` is for the message.

        Raises:
            DataError: a page is in none of the files.
        """
        if not self.paths:
            return {}
        found = {}
        for name in pages:
            row = self._database.execute("SELECT body FROM page WHERE name = ?", (name,)).fetchone()
            if row is None:
                names = ", ".join(map(str, self.paths))
                raise DataError(f"{where}: page {name!r} has no words in {names}; give the IMDB file of this split")
            found[name] = msgspec.msgpack.decode(row[0], type=Words)
        return found

    def _add(self, where: str, record: object) -> None:
        """A page stands in the records of all its questions; the first of them is kept."""
        try:
            read = msgspec.convert(record, type=_ImdbRecord)
        except msgspec.ValidationError as error:
            raise DataError(f"{where}: {error}; expected {IMDB_FORM}") from None
        lengths = len(read.image_name), len(read.ocr_tokens), len(read.ocr_normalized_boxes)
        if len(set(lengths)) > 1:
            raise DataError(f"{where}: {lengths[0]} pages, {lengths[1]} with words, {lengths[2]} with boxes")
        for name, words, boxes in zip(read.image_name, read.ocr_tokens, read.ocr_normalized_boxes, strict=True):
            if len(words) != len(boxes):
                raise DataError(f"{where}: page {name!r}: {len(words)} words and {len(boxes)} boxes")
            rounded = tuple(_checked_box(box, f"{where}: page {name!r}") for box in boxes)
            body = msgspec.msgpack.encode(Words(words=tuple(words), boxes=rounded))
            try:
                self._database.execute("INSERT OR IGNORE INTO page VALUES (?, ?)", (name.removesuffix(".jpg"), body))
            except (UnicodeEncodeError, sqlite3.Error) as error:
                raise DataError(f"{where}: page {name!a}: {error}") from None


def read(path: Path, words: PageWords, advance: Advance) -> Iterator[Annotation]:
    """Yield the questions of a file; those about one document have one sample.

    Raises:
        DataError: the file is broken or of another form, a question has no pages or a page twice, its answer page is
            not in its window, or it has answers without an answer page or the reverse.
    """
    for number, record in enumerate(read_list(path, "data", AskedRecord, QUESTIONS_FORM, advance), start=1):
        where = f"{path}: entry {number} of data: question {record.questionId!r}"
        page = checked_page(record, where)
        question = ReadQuestion(
            question_id=str(record.questionId),
            question=record.question,
            pages=tuple(record.page_ids),
            answers=tuple(record.answers or ()),
            answer_page=page,
            words=words.of(record.page_ids, where),
        )
        yield Annotation(record.doc_id, tuple(record.page_ids), question)


def checked_page(record: AskedRecord, where: str) -> int | None:
    """The place of the answer page in the window; None where it is not known.

    Raises:
        DataError: the window is empty or has a page twice, or the answer page is not in it.
    """
    pages, page = record.page_ids, record.answer_page_idx
    if not pages:
        raise DataError(f"{where}: document {record.doc_id!r} has no pages; expected page_ids with one at least")
    if len(set(pages)) < len(pages):
        twice = next(name for name in pages if pages.count(name) > 1)
        raise DataError(f"{where}: page {twice!r} is in page_ids twice; expected each page once")
    if page is not None and not 0 <= page < len(pages):
        raise DataError(
            f"{where}: answer_page_idx {page}; expected 0 to {len(pages) - 1}, a place among its {len(pages)} pages"
        )
    if page is None and record.answers:
        raise DataError(f"{where}: answers without answer_page_idx; expected both, or neither as in the test split")
    return page


def _checked_box(box: PageBox, where: str) -> PageBox:
    left, top, right, bottom = box
    if not all(math.isfinite(side) and -_BESIDE_THE_PAGE <= side <= 1 + _BESIDE_THE_PAGE for side in box):
        raise DataError(f"{where}: box {list(box)}; expected left, top, right, bottom in parts of the page, 0 to 1")
    left, top, right, bottom = (round(min(max(side, 0.0), 1.0), BOX_DIGITS) for side in box)
    return left, top, right, bottom
