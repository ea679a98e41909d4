"""Many questions to a model that stays loaded: pairs in, answers in their order, as they come."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from shards.atomic import check_writable, write_atomically
from shards.errors import DataError, UserError
from shards.own.table import read_table
from shards.progress import Progress
from shards.read.photo import check_question, read_photo
from trainer.export.read import load_exported, read_run
from trainer.inference.asking import Asking
from trainer.reporting.overlays import Answered

COLUMNS = ("image", "question", "answer", "probability")


class Asked(NamedTuple):
    """A question that was answered."""

    photos: tuple[Any, ...]
    """As they were given."""
    question: str
    answered: Answered


def answer_many(
    asking: Asking,
    asked: Iterable[tuple[Sequence[Any], str]],
    *,
    open_photo: Callable[[Any], Image.Image] = read_photo,
    batch_size: int = 32,
) -> Iterator[Asked]:
    """Answer (photos, question) pairs in batches; neighbours about the same photo read and encode it once.

    Args:
        open_photo: a photo, as it was given, to an RGB image.

    Raises:
        UserError: a photo or a question cannot be used; the message names the photo.
    """
    pairs = iter(asked)
    while batch := list(islice(pairs, batch_size)):
        texts = [check_question(question) for _, question in batch]
        opened: dict[int | str, Image.Image] = {}
        shown = [tuple(_opened(photo, opened, open_photo) for photo in photos) for photos, _ in batch]
        answers = asking.answers(shown, texts)
        for (photos, _), text, answered in zip(batch, texts, answers, strict=True):
            yield Asked(tuple(photos), text, answered)


def answer_table(
    run: Path, table: Path, *, images: Path | None = None, out: Path | None = None, overrides: Sequence[str] = ()
) -> str | None:
    """Answer every row of a table of images and questions.

    Args:
        table: any that `duoflow init` takes; an answer column is not needed.
        images: where relative names of images begin; None is the directory of the table.
        out: a CSV to write; None gives its text.

    Raises:
        UserError: the table, a photo, a question or the run cannot be used; nothing was written.
    """
    rows = read_table(table, needed=("image", "question")).rows
    home = table.parent if images is None else images
    if out is not None:
        check_writable("--out", out)
        if out.exists() and out.samefile(table):
            raise UserError(f"--out {out}: is the table itself; name another file")
    for row in rows:
        if not (home / row.image).is_file():
            raise DataError(
                f"{table}: {row.place}: image {home / row.image} is not there; --images names its directory"
            )
        try:
            check_question(row.question)
        except UserError as error:
            raise DataError(f"{table}: {row.place}: {error}") from None
    asking = Asking(load_exported(run, read_run(run, overrides)), run)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    with Progress("answering", len(rows), "questions") as progress:
        found = answer_many(asking, (((home / row.image,), row.question) for row in rows))
        for row, one in zip(rows, found, strict=True):
            answered = one.answered
            writer.writerow([row.image, row.question, answered.text, f"{answered.confidence:.4g}"])
            progress.advance(1)
    if out is None:
        return text.getvalue()
    write_atomically(out, text.getvalue().encode())
    return None


def _opened(photo: Any, opened: dict[int | str, Image.Image], open_photo: Callable[[Any], Image.Image]) -> Image.Image:
    """A photo, the same object for the same file."""
    key = id(photo) if isinstance(photo, Image.Image) else str(photo)
    if key not in opened:
        opened[key] = open_photo(photo)
    return opened[key]
