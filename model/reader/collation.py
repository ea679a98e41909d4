"""Visits to readings: for each question, each of its pages with the question in front."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from model.reader.batch import GRID, ReaderBatch, Readings
from model.towers.tokenizer import T5Codec
from shards.errors import DataError
from shards.format.documents import Page
from shards.format.index import SplitIndex
from shards.read.collate import collate_targets, pad
from shards.read.collation import Collated, SeenVisit
from shards.tasks.seam import Row, Target

BLOCK = "ask"
"""The only block that a reader reads."""

_LENGTH_MULTIPLE = 8
_WHOLE_PAGE, _NOWHERE = (0, 0, GRID, GRID), (0, 0, 0, 0)

Box = tuple[int, ...]


class Text(NamedTuple):
    """Tokens with their boxes."""

    ids: list[int]
    boxes: list[Box]


@dataclass(frozen=True, kw_only=True)
class ReaderCollation:
    """How a reader's micro-batches are made. Everything is read and written in lower case."""

    codec: T5Codec
    page_ids: tuple[int, ...]
    """Tokens that stand for a page."""
    max_pages: int
    max_page_tokens: int

    @property
    def modules(self) -> set[str]:
        """See `shards.read.collation.Collation.modules`."""
        return {__name__}

    def eyes(self, index: SplitIndex, image_size: int | None) -> None:  # noqa: ARG002 - of no use here
        """Nobody looks at pages."""
        return

    def collate(
        self,
        visits: Sequence[SeenVisit],
        *,
        loss_scale: float,
        eyes: None = None,  # noqa: ARG002 - there are none
        blanks: int = 1,  # noqa: ARG002 - a page without words is blank
        answering: bool = False,  # noqa: ARG002 - questions are read alike
    ) -> Collated:
        """See `shards.read.collation.Collation.collate`.

        Raises:
            DataError: a question is asked of more pages than the page head has places for.
        """
        nothing = SeenVisit([], {BLOCK: [Row("", 0, weight=0.0)]}, 1, "nothing", [Page(image_id="", width=1, height=1)])
        asked, cut, read = [], 0, []
        for visit in visits or [nothing]:
            words = [self._words(page) for page in visit.pages]
            for row in visit.rows[BLOCK]:
                front, was_cut = self._front(row.text)
                cut += was_cut
                places = row.places or tuple(range(len(row.all_images)))
                self._check_places(visit, places)
                read.append(
                    [(self._reading(front, words[page]), at) for page, at in zip(row.all_images, places, strict=True)]
                )
                asked.append(row)
        targets = [_in_lower_case(row) for row in asked]
        made = ReaderBatch(
            self._readings(read),
            _mask([len(pages) for pages in read]),
            collate_targets(targets, self.codec),
            torch.tensor([row.label for row in asked]),
            torch.tensor([row.weight for row in asked]),
            torch.tensor(loss_scale, dtype=torch.float32),
        )
        return Collated(made, cut)

    def _front(self, question: str) -> tuple[Text, bool]:
        """What stands in front of the words of each page, and whether the question was cut."""
        asked = self._encode([question.lower().strip()])[0]
        kept = asked[: self.codec.max_question_tokens]
        before, behind = self._frame
        ids = [*self.page_ids, *before, *kept, *behind]
        return Text(ids, [_WHOLE_PAGE] * len(ids)), len(kept) < len(asked)

    def _words(self, page: Page) -> Text:
        """The words of a page, each token with the box of its word."""
        found = Text([], [])
        encoded = self._encode([word.lower() for word in page.words])
        for ids, corners in zip(encoded, page.boxes, strict=True):
            found.ids.extend(ids)
            found.boxes.extend([tuple(min(max(round(GRID * part), 0), GRID) for part in corners)] * len(ids))
        return found

    def _reading(self, front: Text, words: Text) -> Text:
        room = self.max_page_tokens - len(front.ids) - 1
        ids = [*front.ids, *words.ids[:room], self.codec.end_id]
        return Text(ids, [*front.boxes, *words.boxes[:room], _NOWHERE])

    def _readings(self, read: Sequence[Sequence[tuple[Text, int]]]) -> Readings:
        flat = [
            (text, number, column, at) for number, pages in enumerate(read) for column, (text, at) in enumerate(pages)
        ]
        texts, question, column, place = zip(*flat, strict=True)
        ids, mask = pad([text.ids for text in texts], self.codec.pad_id, multiple=_LENGTH_MULTIPLE)
        boxes = torch.zeros(*ids.shape, 4, dtype=torch.int64)
        for number, text in enumerate(texts):
            boxes[number, : len(text.boxes)] = torch.tensor(text.boxes)
        return Readings(ids, mask, boxes, torch.tensor(question), torch.tensor(column), torch.tensor(place))

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What stands around the question."""
        before, behind = self._encode([": question:", "context:"])
        return before, behind

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; one that spells a special token is not read as one."""
        if not texts:
            return []
        encode = self.codec.tokenizer
        return encode(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def _check_places(self, visit: SeenVisit, places: Sequence[int]) -> None:
        if max(places) >= self.max_pages:
            raise DataError(
                f"{visit.where}: a question is asked of page {max(places) + 1} of its window, and the page head has "
                f"places for {self.max_pages}; raise reader.max_pages, or leave such questions out"
            )


def _in_lower_case(row: Row) -> Row:
    targets = row.targets or (Target("", 0.0),)
    return row._replace(targets=tuple(target._replace(text=target.text.lower()) for target in targets))


def _mask(lengths: Sequence[int]) -> torch.Tensor:
    """(Q, W) bool: as many columns of each question as it has pages."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
