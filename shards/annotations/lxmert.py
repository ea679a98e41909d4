"""LXMERT's files of its three tasks: questions with scores of answers (VQA, GQA), statements about two images (NLVR2).

VQA: `[{"question_id": 458752000, "img_id", "sent", "label": {"net": 1}, "answer_type", "question_type"}, ...]`; GQA:
`[{"question_id": "07333408", "img_id", "sent", "label": {"pipe": 1.0}}, ...]`; NLVR2: `[{"identifier", "uid", "img0",
"img1", "sent", "label": 0}, ...]`. Test files have no label.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from shards.annotations.json_files import iterate_records
from shards.annotations.nlvr2 import pair_of
from shards.annotations.seam import Advance, Annotation, Beside
from shards.errors import DataError
from shards.format.records import ScoredQuestion, Statement

ENDINGS = (".jpg", ".png", ".jpeg", ".webp", "")
STATEMENTS = "lxmert_nlvr2"
"""The format of its statements; `lxmert` is that of its questions."""

QUESTION_FORM = (
    'LXMERT\'s [{"question_id", "img_id", "sent", "label": {answer: score}}, ...], the id a number for VQA and a text '
    "for GQA"
)
STATEMENT_FORM = 'LXMERT\'s [{"identifier", "uid", "img0", "img1", "sent", "label": 0 or 1}, ...]'
TRUTH = ("False", "True")
"""What 0 and 1 stand for."""


class AskedRecord(msgspec.Struct, gc=False):
    """A question of VQA or GQA."""

    question_id: int | str
    img_id: str
    sent: str
    label: dict[str, float] | None = None
    answer_type: str | None = None
    question_type: str | None = None

    @property
    def source(self) -> str:
        """vqa or gqa: how it is handed in."""
        return "vqa" if isinstance(self.question_id, int) else "gqa"


class _Stated(msgspec.Struct, gc=False):
    identifier: str
    img0: str
    img1: str
    sent: str
    label: int | None = None
    uid: str | None = None


class _Any(msgspec.Struct, gc=False):
    identifier: str | None = None
    question_id: int | str | None = None


def settle(paths: Sequence[Path]) -> str:
    """Which of both formats files are of, told by the first record of each.

    Raises:
        DataError: a file is of neither, or two are not of one.
    """
    found: dict[str, Path] = {}
    for path in paths:
        for where, record in islice(iterate_records(path, _Any, f"{QUESTION_FORM}, or {STATEMENT_FORM}", _nobody), 1):
            if (record.identifier is None) == (record.question_id is None):
                raise DataError(f"{where}: expected {QUESTION_FORM}, or {STATEMENT_FORM}")
            found.setdefault("lxmert" if record.identifier is None else STATEMENTS, path)
    if len(found) > 1:
        raise DataError(f"{found[STATEMENTS]}: statements, and {found['lxmert']}: questions; give files of one form")
    return next(iter(found), "lxmert")


def read_questions(path: Path, beside: Beside, advance: Advance) -> Iterator[Annotation]:  # noqa: ARG001
    """Yield the questions of a file.

    Raises:
        DataError: an entry is of another form, has a score that is none, or is of VQA where the first is of GQA.
    """
    source = None
    for where, row in iterate_records(path, AskedRecord, QUESTION_FORM, advance):
        where = f"{where}: question {row.question_id!r}"
        source = source or row.source
        if row.source != source:
            raise DataError(f"{where}: is one of {row.source.upper()}, and the first of {source.upper()}")
        yield Annotation(row.img_id, (row.img_id,), _question(row, where))


def read_statements(path: Path, beside: Beside, advance: Advance) -> Iterator[Annotation]:  # noqa: ARG001
    """Yield the statements of a file; those about one pair of images have one sample.

    Raises:
        DataError: an entry is of another form, or its label is neither 0 nor 1.
    """
    for where, row in iterate_records(path, _Stated, STATEMENT_FORM, advance):
        if row.label not in (None, 0, 1):
            raise DataError(f"{where}: label {row.label}; expected 0 or 1")
        label = None if row.label is None else TRUTH[row.label]
        statement = Statement(statement_id=row.identifier, statement=row.sent, label=label)
        yield Annotation(pair_of(row.identifier, where), (row.img0, row.img1), statement)


def checked_label(label: dict[str, float], where: str) -> dict[str, float]:
    """The scores of answers.

    Raises:
        DataError: one is not from 0 to 1.
    """
    for answer, score in label.items():
        if not 0 <= score <= 1:
            raise DataError(f"{where}: label {answer!r}: {score}; expected a score from 0 to 1")
    return label


def _question(row: AskedRecord, where: str) -> ScoredQuestion:
    return ScoredQuestion(
        question_id=str(row.question_id),
        question=row.sent,
        label=None if row.label is None else checked_label(row.label, where),
        source=row.source,
        question_type=row.question_type,
        answer_type=row.answer_type,
    )


def _nobody(_: int) -> None:
    """Told nothing: the file is read again."""
