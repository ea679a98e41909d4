"""The predictions of a split as a table to read: image, question, answer, prediction, probability, score."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.errors import DataError
from shards.format.records import Item
from shards.read.micro_batches import Split
from trainer.tasks import Outputs, Task
from trainer.tasks.seam import Json

COLUMNS = ("id", "image", "question", "answer", "prediction", "probability", "correct")


class Predicted(NamedTuple):
    """A row."""

    item_id: str
    image: str
    """Its id; of several images, with blanks between them."""
    question: str
    answer: str | None
    """The first of those that are known; None where none is."""
    prediction: str
    probability: float | None
    """By the model; None where it gives none."""
    correct: float | None
    """The score that the task gives, in [0, 1]; None without a known answer."""


def predicted_rows(
    split: Split, predictions: Mapping[str, Json], probabilities: Mapping[str, float], task: Task
) -> Iterator[Predicted]:
    """A row for each item of a split whose prediction is a text, in the order of the shards."""
    for number in np.unique(split.visits.image).tolist():
        sample = split.reader.sample(number)
        image = " ".join(picture.image_id for picture in sample.pictures)
        for item in sample.items:
            text = _text(predictions.get(item.item_id))
            if text is not None:
                likely, score = probabilities.get(item.item_id), _score(item, text, task)
                yield Predicted(item.item_id, image, item.texts[0], item.kind.answer, text, likely, score)


def as_csv(rows: Iterable[Predicted]) -> Iterator[bytes]:
    """UTF-8 with a header line, a piece for each row; what is not known is an empty cell."""
    yield _line(COLUMNS)
    for row in rows:
        likely, score = row.probability, row.correct
        shown = ("" if likely is None else f"{likely:.4g}", "" if score is None else f"{score:.4g}")
        yield _line((*row[:3], row.answer or "", row.prediction, *shown))


def read_predicted(path: Path) -> list[Predicted]:
    """The rows of a table that `as_csv` wrote.

    Raises:
        DataError: it is another file.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if tuple(header) != COLUMNS:
            raise DataError(f"{path}: line 1: columns {','.join(header)[:80]!r}; expected {','.join(COLUMNS)}")
        try:
            return [
                Predicted(*row[:3], row[3] or None, row[4], *(float(cell) if cell else None for cell in row[5:7]))
                for row in rows
            ]
        except (ValueError, IndexError, csv.Error):
            raise DataError(f"{path}: line {rows.line_num}: damaged; write it again with `duoflow evaluate`") from None


def _line(cells: Sequence[str]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue().encode("utf-8", "replace")


def _text(prediction: Json) -> str | None:
    """The text of a prediction in the form of any task: a text, or a text with what is known."""
    if isinstance(prediction, list) and prediction:
        prediction = prediction[0]
    return prediction if isinstance(prediction, str) else None


def _score(item: Item, text: str, task: Task) -> float | None:
    """What the task's own counting gives this item alone."""
    if item.kind.answer is None:
        return None
    scores = task.scores()
    task.observe(scores, [item], Outputs([text], [text], frozenset([text])), False)
    metrics = {name: value for part in scores for name, value in part.as_metrics("one").items()}
    return metrics.get("one/accuracy")
