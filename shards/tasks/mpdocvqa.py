"""MP-DocVQA: a question is read with the pages of its window, of which one shows the answer.

In training a window may be narrowed to `data.pages_per_visit` pages around the answer; which ones is a hash, so that
an epoch can be had again, and the sample is what it was. In evaluation the whole window is read.
"""

from collections.abc import Sequence

import numpy as np

from shards.format.documents import Document, DocumentQuestion
from shards.plan import hash64
from shards.tasks.seam import Block, Draw, Row, Rows, Target, TaskData, Visit, Wanted


def rows(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:
    """`ask`: every question, once, with the pages that it is asked of.

    Its target is one of its answers, drawn anew each epoch; in evaluation the first of them. One without answers
    weighs nothing.
    """
    document: Document = draw.sample_of(visit.sample)
    questions: Sequence[DocumentQuestion] = visit.items
    numbers = np.asarray(visit.numbers, dtype=np.int64)
    seed, epoch = draw.epoch.order.seed, draw.epoch.epoch
    windows, answers = (hash64(seed, epoch, purpose, numbers).tolist() for purpose in ("page", "answer"))
    return Rows(
        {
            "ask": [
                _row(question, item, document, window_of(question, wanted.pages, windows[item]), answers[item])
                if draw.is_training
                else _row(question, item, document, range(len(question.pages)), 0)
                for item, question in enumerate(questions)
            ]
        }
    )


def window_of(question: DocumentQuestion, size: int | None, draw: int) -> range:
    """The pages that are read in training, as places in the question's window: `size` in a row, the answer page among
    them; every such run is equally likely.

    Args:
        size: None is all of them.
        draw: 64 bits that choose.
    """
    length = len(question.pages)
    if size is None or size >= length:
        return range(length)
    first, last = 0, length - size
    if question.answer_page is not None:
        first, last = max(first, question.answer_page - size + 1), min(last, question.answer_page)
    start = first + draw % (last - first + 1)
    return range(start, start + size)


def _row(question: DocumentQuestion, item: int, document: Document, window: range, draw: int) -> Row:
    places = sorted(document.places[question.pages[place]] for place in window)
    known = len(question.answers)
    return Row(
        question.question,
        item,
        image=places[0],
        images=tuple(places),
        weight=float(known > 0),
        targets=(Target(question.answers[draw % known], 1.0) if known else Target("", 0.0),),
    )


DATA = TaskData(
    formats=("mpdocvqa",),
    blocks={"ask": Block(tower="answer")},
    reads={"answer": "ask"},
    losses={"answer": 1.0},
    rows=rows,
    images=None,
    augments=False,
)
