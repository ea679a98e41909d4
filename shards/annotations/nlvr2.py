"""NLVR2's official files: one statement about two images per line."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from shards.annotations.json_files import iterate_records
from shards.annotations.seam import Advance, Annotation, Beside
from shards.errors import DataError
from shards.format.records import Statement

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
FORM = 'NLVR2\'s {"identifier", "sentence", "label"}, one object per line'
LABELS = {"true": "True", "false": "False"}
"""In lower case, as the official script compares them -> as its files have them."""


class StatementRecord(msgspec.Struct, gc=False):
    """A line of train.json, dev.json, test1.json, ..."""

    identifier: str
    sentence: str
    label: str | None = None
    directory: int | str | None = None
    """Of the training images, which lie in numbered directories."""


def label_of(text: str, where: str) -> str:
    """True or False, whatever the case of its letters.

    Raises:
        DataError: it is neither.
    """
    label = LABELS.get(text.lower())
    if label is None:
        raise DataError(f"{where} {text!r}; expected True or False")
    return label


def pair_of(identifier: str, where: str) -> str:
    """The name of the pair of images of a statement: its identifier without the number of the sentence.

    Raises:
        DataError: it has not the form split-set-pair-sentence.
    """
    pair, _, sentence = identifier.rpartition("-")
    if pair.count("-") < 2 or not sentence:
        raise DataError(f"{where}: identifier {identifier!r}; expected split-set-pair-sentence, such as dev-850-0-0")
    return pair


def read(path: Path, beside: Beside, advance: Advance) -> Iterator[Annotation]:  # noqa: ARG001
    """Yield the statements of a file; those about one pair of images have one sample.

    Raises:
        DataError: a line is of another form, or its label is neither True nor False.
    """
    for where, row in iterate_records(path, StatementRecord, FORM, advance):
        pair = pair_of(row.identifier, where)
        label = None if row.label is None else label_of(row.label, f"{where}: label")
        folder = "" if row.directory is None else f"{row.directory}/"
        refs = tuple(f"{folder}{pair}-img{number}" for number in range(2))
        yield Annotation(pair, refs, Statement(statement_id=row.identifier, statement=row.sentence, label=label))
