"""MP-DocVQA: a question is read with the pages of its window, of which one shows the answer.

In training a window may be narrowed to `data.pages_per_visit` pages around the answer. The document is cut into runs of
so many pages, beginning at a place that a hash draws for each document and epoch, and a question reads the run that
shows its answer: questions whose answers are near each other share their pages, and an epoch can be had again. In
evaluation the whole window is read, or of it what `data.retrieved` names.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from shards.errors import DataError
from shards.format.documents import Document, DocumentQuestion
from shards.plan import hash64
from shards.tasks.seam import Block, Draw, Row, Rows, Target, TaskData, Visit, Wanted


def rows(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:
    """`ask`: every question, once, with the pages that it is asked of.

    Its target is one of its answers, drawn anew each epoch; in evaluation the first of them. Its label is the page with
    the answer. A question without answers weighs nothing.
    """
    document: Document = draw.samples.sample(visit.sample)
    questions: Sequence[DocumentQuestion] = visit.items
    places, made = document.places, []
    cut, answers = _drawn(draw, visit) if draw.is_training else (0, [0] * len(questions))
    for item, question in enumerate(questions):
        window = [(places[name], place) for place, name in enumerate(question.pages)]
        if draw.is_training and wanted.pages is not None:
            answer = 0 if question.answer_page is None else question.answer_page
            in_document = [page for page, _ in window]
            window = [window[place] for place in narrowed(in_document, answer, wanted.pages, cut)]
        if not draw.is_training and wanted.retrieved is not None:
            window = [window[question.pages.index(name)] for name in _retrieved(question, wanted.retrieved)]
        made.append(_row(question, item, sorted(window), answers[item]))
    return Rows({"ask": made})


def narrowed(window: Sequence[int], answer: int, size: int, draw: int) -> range:
    """Places in a window that are read: `size` in a row, the answer among them; all, where there are no more.

    Args:
        window: the pages by their places in the document.
        answer: which of them shows the answer, as a place in the window.
        draw: where the document is cut: of as many numbers in a row as the size, each puts the answer elsewhere.
    """
    if size >= len(window):
        return range(len(window))
    start = answer - (window[answer] + draw) % size
    start = min(max(start, 0), len(window) - size)
    return range(start, start + size)


def _retrieved(question: DocumentQuestion, found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    names = found.get(question.question_id, ())
    strange = next((name for name in names if name not in question.pages), None)
    if not names or strange is not None:
        wrong = "is not in the file" if not names else f"is not asked of page {strange}, which the file names"
        raise DataError(
            f"data.retrieved: question {question.question_id} {wrong}; evaluate the retrieval run on these very shards"
        )
    return names


def _drawn(draw: Draw, visit: Visit) -> tuple[int, list[int]]:
    """Where the document is cut, and which of its answers each question has in this epoch."""
    seed, epoch = draw.epoch.order.seed, draw.epoch.epoch
    (cut,) = hash64(seed, epoch, "page", np.array([visit.sample])).tolist()
    return cut, hash64(seed, epoch, "answer", np.asarray(visit.numbers, dtype=np.int64)).tolist()


def _row(question: DocumentQuestion, item: int, pages: Sequence[tuple[int, int]], draw: int) -> Row:
    """The row of a question that reads these pages: (place in the document, place in its window) of each."""
    known = len(question.answers)
    images, places = zip(*pages, strict=True)
    return Row(
        question.question,
        item,
        image=images[0],
        images=images,
        places=places,
        label=question.answer_page or 0,
        weight=float(question.answer_page is not None),
        targets=(Target(question.answers[draw % known], 1.0) if known else Target("", 0.0),),
    )


DATA = TaskData(
    formats=("mpdocvqa",),
    blocks={"ask": Block(tower="answer")},
    reads={"answer": "ask", "page": "ask"},
    losses={"answer": 1.0, "page": 0.25},
    rows=rows,
    images=None,
    augments=False,
)
