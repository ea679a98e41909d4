"""Pages of MP-DocVQA: which of the pages that a question is asked of shows its answer.

In training a question is compared with the page of its answer and with other pages of its window, as many as make up
`data.pages_per_visit`: those with the least hashes of seed, epoch, question and page, so that an epoch can be had
again. What another question of its visit is compared with is encoded already: it counts where the question is asked of
it. In evaluation the whole window is compared.
"""

from collections.abc import Sequence

import numpy as np

from shards.format.documents import Document, DocumentQuestion
from shards.plan import hash_order
from shards.tasks.seam import Block, Draw, Row, Rows, TaskData, Visit, Wanted

_MAX_PAGES = 2**16
"""Of a document: page p of item n is hashed as number n * _MAX_PAGES + p."""


def rows(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:
    """`find`: every question, once, with the pages that it is compared with, in the order of its window.

    Its label is the place of the answer page among them. One whose answer page is not known weighs nothing.
    """
    document: Document = draw.samples.sample(visit.sample)
    questions: Sequence[DocumentQuestion] = visit.items
    places = document.places
    windows = [[places[name] for name in question.pages] for question in questions]
    shown = set(range(len(document.pages)))
    if draw.is_training and wanted.pages is not None:
        epoch = draw.epoch.order.seed, draw.epoch.epoch
        drawn = zip(questions, windows, visit.numbers, strict=True)
        shown = {place for one in drawn for place in _compared(*one, *epoch, wanted.pages)}
    made = [_row(question, item, windows[item], shown) for item, question in enumerate(questions)]
    return Rows({"find": made})


def _compared(
    question: DocumentQuestion, window: Sequence[int], number: int, seed: int, epoch: int, size: int
) -> list[int]:
    """At most `size` pages of a window, the one with the answer first."""
    answer = [] if question.answer_page is None else [window[question.answer_page]]
    others = np.array(sorted(set(window).difference(answer)), dtype=np.int64)
    order = hash_order(seed, epoch, "page_negative", number * _MAX_PAGES + others)
    return [*answer, *others[order].tolist()][:size]


def _row(question: DocumentQuestion, item: int, window: Sequence[int], shown: set[int]) -> Row:
    images = tuple(place for place in window if place in shown)
    known = question.answer_page is not None
    return Row(
        question.question,
        item,
        image=images[0],
        images=images,
        weight=float(known),
        label=images.index(window[question.answer_page]) if known else 0,
    )


DATA = TaskData(
    formats=("mpdocvqa",),
    blocks={"find": Block(tower="retrieval")},
    reads={"retrieve": "find"},
    losses={"retrieve": 1.0},
    rows=rows,
    images=None,
    by_window=False,
    augments=False,
)
