"""Documents of one to eight pages of `KEY value` lines in MP-DocVQA's own format: what is asked stands on one page.

A key stands once in a document, and values are drawn: neither the question nor another page tells the answer.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import count, takewhile
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.scenes.letters import HEIGHT, written
from shards.scenes.raster import encode_png
from shards.scenes.world import Dice, part_of

PAGE_SIZE = 144
"""Side in pixels."""
LINES = 6
"""Of a page."""
MAX_PAGES = 8
NUM_QUESTIONS = 6
"""Of a document."""
KEYS = (
    *("AGE", "AREA", "ASSET", "AUDIT", "BATCH", "BILL", "BOND", "BOX", "CASE", "CASH", "CLASS", "CODE"),
    *("COST", "CREW", "DAYS", "DEBT", "DEPTH", "DOSE", "DUTY", "FEE", "FILE", "FLOOR", "FUEL", "FUND"),
    *("GAIN", "GATE", "GRADE", "GRANT", "HOURS", "INDEX", "ITEMS", "LEASE", "LEVEL", "LOAN", "LOSS", "MILES"),
    *("ORDER", "PAGES", "PHASE", "PLANT", "PRICE", "QUOTA", "RATE", "RENT", "ROOM", "ROUTE", "SALES", "SCORE"),
    *("SHARE", "STAFF", "STOCK", "TAX", "TERM", "TOTAL", "UNITS", "USERS", "VALUE", "VOTES", "WAGE", "ZONE"),
)
VALUES = range(100, 1000)
SPLITS = ("train", "val", "test")
MIN_IMAGES = 6
"""The first documents have 1, 2 and 3 pages, and are one of each split."""

PAPER, INK = 250, 20
SCALE = 2
"""Pixels of a page for one of a letter."""
MARGIN = 12
"""In front of a line."""


class Asked(NamedTuple):
    """A question about a document."""

    key: str
    value: str
    window: range
    """The pages that it is asked of."""
    page: int
    """The one that shows the answer."""


class Pages(NamedTuple):
    """A document."""

    document_id: str
    split: str
    pages: tuple[tuple[tuple[str, str], ...], ...]
    """Key and value of every line of every page."""
    asked: tuple[Asked, ...]

    def page_id(self, page: int) -> str:
        """The name of a page, which is that of its image."""
        return f"{self.document_id}_p{page}"


def num_pages(number: int) -> int:
    """Of a document by its number: one to eight by turns, so that a number of images says how many documents it is."""
    return 1 + number % MAX_PAGES


def document(seed: int, number: int) -> Pages:
    """A document by its number: a pure function of its arguments."""
    dice, length = Dice(seed, number), num_pages(number)
    keys, values = dice.shuffle(KEYS, "keys"), dice.shuffle(VALUES, "values")
    lines = tuple((key, str(value)) for key, value in zip(keys, values, strict=False))
    pages = tuple(lines[LINES * page : LINES * (page + 1)] for page in range(length))
    asked = dice.shuffle([(page, line) for page in range(length) for line in pages[page]], "asked")[:NUM_QUESTIONS]
    questions = tuple(Asked(key, value, _window(dice, key, page, length), page) for page, (key, value) in asked)
    return Pages(f"doc{number:06d}", SPLITS[part_of(number)], pages, questions)


def image_counts(num_images: int) -> Counter[str]:
    """How many pages each split gets; those that would not make a whole document are left out."""
    counts: Counter[str] = Counter()
    for number in _documents(num_images):
        counts[SPLITS[part_of(number)]] += num_pages(number)
    return counts


def document_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of the set, pages first: a pure function of its arguments."""
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for number in _documents(num_images):
        drawn = document(seed, number)
        for page, lines in enumerate(drawn.pages):
            yield f"images/{drawn.page_id(page)}.png", encode_png(draw(lines))
        records[drawn.split] += question_records(drawn, number)
    for split, data in sorted(records.items()):
        head = {"dataset_name": "MP-DocVQA", "dataset_version": "drawn", "dataset_split": split}
        yield f"{split}.json", msgspec.json.format(msgspec.json.encode(head | {"data": data}), indent=1) + b"\n"


def question_records(drawn: Pages, number: int) -> Iterator[dict[str, Any]]:
    """The entries of `val.json` about a document."""
    for place, asked in enumerate(drawn.asked):
        yield {
            "questionId": NUM_QUESTIONS * number + place,
            "question": f"What is the {asked.key}?",
            "doc_id": drawn.document_id,
            "page_ids": [drawn.page_id(page) for page in asked.window],
            "answers": [asked.value],
            "answer_page_idx": asked.page - asked.window.start,
            "data_split": drawn.split,
        }


def draw(lines: tuple[tuple[str, str], ...]) -> NDArray[np.uint8]:
    """A page: (PAGE_SIZE, PAGE_SIZE, 3), dark on light."""
    page = np.full((PAGE_SIZE, PAGE_SIZE), PAPER, np.uint8)
    for place, (key, value) in enumerate(lines):
        mask, top = written(f"{key} {value}", SCALE), top_of(place)
        page[top : top + mask.shape[0], MARGIN : MARGIN + mask.shape[1]][mask] = INK
    return np.repeat(page[:, :, None], 3, axis=2)


def top_of(place: int) -> int:
    """Where the letters of a line begin, in pixels from above: in the middle of their part of the page."""
    pitch = PAGE_SIZE // LINES
    return place * pitch + (pitch - HEIGHT * SCALE) // 2


def _window(dice: Dice, key: str, page: int, length: int) -> range:
    """At least half of the document, the page within it."""
    size = dice.pick(range((length + 1) // 2, length + 1), "window", key)
    start = dice.pick(range(max(0, page - size + 1), min(page, length - size) + 1), "start", key)
    return range(start, start + size)


def _documents(num_images: int) -> list[int]:
    """The numbers of the documents that so many pages are enough for."""
    ends = (sum(map(num_pages, range(number + 1))) for number in count())
    return list(range(len(list(takewhile(lambda end: end <= num_images, ends)))))
