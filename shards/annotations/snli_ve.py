"""SNLI-VE's files, in the official form or in ALBEF's: hypotheses about an image, with what the image says to them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from shards.annotations.json_files import iterate_records
from shards.annotations.seam import Advance, Annotation, Beside
from shards.errors import DataError
from shards.format.records import Statement

ENDINGS = (".jpg", ".png", ".jpeg", ".webp", "")
LABELS = ("entailment", "neutral", "contradiction")
FORM = (
    'SNLI-VE\'s {"Flickr30K_ID", "sentence2", "gold_label", "pairID"}, one object per line, or ALBEF\'s '
    '[{"image", "sentence", "label"}, ...]'
)


class PairName(msgspec.Struct, gc=False):
    """What names a pair of an image and a hypothesis."""

    pair_id: str | int | None = msgspec.field(default=None, name="pairID")
    question_id: str | int | None = None

    def name(self) -> str | None:
        """pairID, or else question_id, as text."""
        found = self.question_id if self.pair_id is None else self.pair_id
        return None if found is None else str(found)


class LabelledPair(PairName, gc=False):
    """The label of a pair, in either form."""

    gold_label: str | None = None
    label: str | None = None

    def truth(self) -> str | None:
        """gold_label, or else label."""
        return self.label if self.gold_label is None else self.gold_label


class _Pair(LabelledPair, gc=False):
    flickr_id: str | int | None = msgspec.field(default=None, name="Flickr30K_ID")
    image: str | int | None = None
    sentence2: str | None = None
    sentence: str | None = None


def known_label(label: str, where: str) -> str:
    """The label.

    Raises:
        DataError: it is none of LABELS.
    """
    if label not in LABELS:
        raise DataError(f"{where} {label!r}; expected {', '.join(LABELS)}")
    return label


def pair_name(row: PairName, place: int) -> str:
    """What a pair is called: a row without a name, as ALBEF's are, by its place in the file, "1", "2", ..."""
    return row.name() or str(place)


def read(path: Path, beside: Beside, advance: Advance) -> Iterator[Annotation]:  # noqa: ARG001
    """Yield the hypotheses of a file.

    Raises:
        DataError: a row is of another form, or its label is none of LABELS.
    """
    for place, (where, row) in enumerate(iterate_records(path, _Pair, FORM, advance), start=1):
        image = row.image if row.flickr_id is None else row.flickr_id
        hypothesis = row.sentence if row.sentence2 is None else row.sentence2
        if image is None or hypothesis is None:
            raise DataError(f"{where}: no {'image' if image is None else 'hypothesis'}; expected {FORM}")
        label = row.truth()
        statement = Statement(
            statement_id=pair_name(row, place),
            statement=hypothesis,
            label=None if label is None else known_label(label, f"{where}: label"),
        )
        yield Annotation(str(image), (str(image),), statement)
