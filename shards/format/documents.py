"""What a sample of a document says: its pages with their words, and questions about windows of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import msgspec

from shards.format.records import Kind, Picture

PageBox = tuple[float, float, float, float]
"""Left, top, right, bottom in parts of the page's width and height."""

_LONG = 3
"""Of fewer pages, any three are all."""
_numbers = re.compile(r"(\d+)")


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What an OCR read on a page, in its order."""

    words: tuple[str, ...] = ()
    boxes: tuple[PageBox, ...] = ()
    """One for each word."""


class Page(Picture, frozen=True, kw_only=True):
    """A page of a document; the size is that of the original, in pixels."""

    words: tuple[str, ...] = ()
    """What an OCR read on it; empty where none was given."""
    boxes: tuple[PageBox, ...] = ()
    """One for each word."""


class DocumentQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A question about some pages of a document. Without answers and answer page in test files."""

    question_id: str
    question: str
    pages: tuple[str, ...]
    """The names of the pages that it is asked of, in their order: its window, which differs from that of others."""
    answers: tuple[str, ...] = ()
    """Every way to write the right one."""
    answer_page: int | None = None
    """Place in `pages` of the one that shows the answer."""

    @property
    def item_id(self) -> str:
        """The question id."""
        return self.question_id

    @property
    def kind(self) -> Kind:
        """Its first answer, and whether its window is longer than what a few pages show of it."""
        window = f"{_LONG} pages and more" if len(self.pages) >= _LONG else f"1 to {_LONG - 1} pages"
        return Kind(self.answers[0] if self.answers else None, None, (("window_type", window),))

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and its answers."""
        return self.question, *self.answers


class ReadQuestion(DocumentQuestion, frozen=True, kw_only=True):
    """A question on its way into a document: it brings the words of its pages along."""

    words: dict[str, Words] = {}
    """By page; empty where no OCR was given."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON member of a sample of a document: all pages that its questions are asked of."""

    ITEMS: ClassVar[str] = "questions"

    document_id: str
    pages: tuple[Page, ...]
    """In the order of their members: KEY.0.jpg, KEY.1.jpg."""
    questions: tuple[DocumentQuestion, ...]
    """Sorted by question id."""

    @property
    def sample_id(self) -> str:
        """The document id."""
        return self.document_id

    @property
    def pictures(self) -> tuple[Page, ...]:
        """The pages."""
        return self.pages

    @property
    def items(self) -> tuple[DocumentQuestion, ...]:
        """The questions."""
        return self.questions

    @property
    def places(self) -> Mapping[str, int]:
        """Of the pages, by name."""
        return {page.image_id: place for place, page in enumerate(self.pages)}

    @classmethod
    def of(cls, sample_id: str, pictures: Sequence[Picture], items: Sequence[ReadQuestion]) -> Self:
        """The document of some pages; what its questions brought along goes to the pages."""
        words = {name: found for item in items for name, found in item.words.items()}
        # An image that is the only one of its sample is called like the sample; a page has a name of its own.
        names = in_document_order(item.pages for item in items)
        pages = tuple(
            Page(
                image_id=name,
                width=picture.width,
                height=picture.height,
                words=words[name].words if name in words else (),
                boxes=words[name].boxes if name in words else (),
            )
            for name, picture in zip(names, pictures, strict=True)
        )
        return cls(document_id=sample_id, pages=pages, questions=tuple(map(_asked, items)))


def in_document_order(windows: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Each page of some windows once, by name with its numbers as numbers: p9 before p10.

    The windows of a document need not overlap, so that their own order does not always tell which page comes first.
    """
    return tuple(sorted({page for window in windows for page in window}, key=_natural))


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    parts = _numbers.split(name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], name


def _asked(item: ReadQuestion) -> DocumentQuestion:
    """The question alone."""
    return DocumentQuestion(**{name: getattr(item, name) for name in DocumentQuestion.__struct_fields__})
