"""Questions as rows with `image`, `question` and `answer`: JSON lines or CSV, one row at a time."""

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shards.annotations.json_stream import open_annotations
from shards.annotations.seam import Advance, Annotation, Beside
from shards.errors import DataError
from shards.format.records import Question

LONGEST_LINE = 16 << 20
REQUIRED = ("image", "question", "answer")
OPTIONAL = ("question_id", "full_answer", "image_id")


class _Row(msgspec.Struct):
    """One row; other columns are allowed and ignored. `answer` must be there, and is null where there is none."""

    image: str
    question: str
    answer: str | None
    question_id: str | int | None = None
    full_answer: str | None = None
    image_id: str | int | None = None


_decoder = msgspec.json.Decoder(_Row)


def read_jsonl(path: Path, beside: Beside, advance: Advance) -> Iterator[Annotation]:  # noqa: ARG001
    """Yield the questions of a file with one JSON object per line; blank lines are passed over.

    Raises:
        DataError: a line that is not such an object; the message names file, line and byte offset.
    """
    with open_annotations(path) as file:
        offset = number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            where = f"{path}: line {number} (byte {offset})"
            if len(line) == LONGEST_LINE:
                raise DataError(f"{where}: longer than {LONGEST_LINE >> 20} MiB; expected one JSON object per line")
            offset += len(line)
            advance(len(line))
            if line.strip():
                yield _annotation(_parse(line.removeprefix(b"\xef\xbb\xbf"), where), where)


def read_csv(path: Path, beside: Beside, advance: Advance) -> Iterator[Annotation]:  # noqa: ARG001
    """Yield the questions of a CSV file with a header line; an empty cell means that there is no such value.

    Raises:
        DataError: columns are missing, or a row does not fit the header; the message names file and line.
    """
    with open_annotations(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        done = 0
        try:
            columns = _columns(path, next(rows, []))
            for cells in rows:
                where = f"{path}: line {rows.line_num}"
                if cells:
                    yield _annotation(_row(columns, cells, where), where)
                advance(file.tell() - done)
                done = file.tell()
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: line {rows.line_num + 1}: not a row of CSV in UTF-8: {error}") from None


def _parse(line: bytes, where: str) -> _Row:
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {error}") from None


def _columns(path: Path, header: list[str]) -> list[str]:
    columns = [name.strip() for name in header]
    missing = [name for name in REQUIRED if name not in columns]
    if missing or len(set(columns)) != len(columns):
        fault = f"no column {', '.join(missing)}" if missing else "two columns of one name"
        raise DataError(
            f"{path}: {fault}; found: {', '.join(columns) or 'nothing'}; expected {', '.join(REQUIRED)} "
            f"and, if you have them, {', '.join(OPTIONAL)}"
        )
    return columns


def _row(columns: list[str], cells: list[str], where: str) -> _Row:
    if len(cells) != len(columns):
        raise DataError(f"{where}: {len(cells)} cells; expected {len(columns)}, as in the header")
    values = {name: cell for name, cell in zip(columns, cells, strict=True) if cell != ""}
    return _Row(
        image=values.get("image", ""),
        question=values.get("question", ""),
        answer=values.get("answer"),
        question_id=values.get("question_id"),
        full_answer=values.get("full_answer"),
        image_id=values.get("image_id"),
    )


def _annotation(row: _Row, where: str) -> Annotation:
    for name in ("image", "question"):
        if not getattr(row, name).strip():
            raise DataError(f"{where}: {name} is empty")
    image_id = row.image if row.image_id is None else str(row.image_id)
    question = Question(
        question_id=_question_id(row) if row.question_id is None else str(row.question_id),
        question=row.question,
        answer=row.answer,
        full_answer=row.full_answer,
    )
    return Annotation(image_id, (row.image,), question)


def _question_id(row: _Row) -> str:
    """An id from what the row says: the same row has the same id in every build, wherever it stands."""
    content = msgspec.json.encode((row.image, row.question, row.answer, row.full_answer))
    return hashlib.sha256(content).hexdigest()[:16]
