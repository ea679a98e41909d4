"""What a sample says: its image or images with all their items, as stored in the JSON member of a shard."""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import msgspec

from shards.lower_case import normalise


class Kind(NamedTuple):
    """What an index counts of an item: items that agree in all of these count as equal."""

    answer: str | None
    """Its answer or label; None where none is known."""
    group: str | None = None
    """What it shares a distribution of answers with."""
    types: tuple[tuple[str, str | None], ...] = ()
    """(classification, type)"""


class Item(Protocol):
    """A text with what is known about it: a question with its answers, a statement with its label."""

    @property
    def item_id(self) -> str:
        """What the data set calls it; unique within a split."""
        ...

    @property
    def kind(self) -> Kind:
        """What an index counts of it."""
        ...

    @property
    def texts(self) -> tuple[str, ...]:
        """What a tokenizer has to know to read it and to write its answer."""
        ...


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """An image of a sample; the sizes are those of the original, in pixels."""

    image_id: str
    width: int
    height: int


class Sample(Protocol):
    """The JSON member of a sample: its images, in the order of their members, and the items about them."""

    ITEMS: ClassVar[str]
    """The field that holds them, which is the last one: an array of objects."""

    @property
    def sample_id(self) -> str: ...

    @property
    def pictures(self) -> Sequence[Picture]: ...

    @property
    def items(self) -> Sequence[Item]:
        """Sorted by item id."""
        ...

    @classmethod
    def of(cls, sample_id: str, pictures: Sequence[Picture], items: Sequence[Any]) -> Self: ...


Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the original image (GQA's scene graphs)."""


class Types(msgspec.Struct, frozen=True, kw_only=True):
    """GQA's three classifications of a question; None where the source has none."""

    structural: str | None = None
    semantic: str | None = None
    detailed: str | None = None


class Groups(msgspec.Struct, frozen=True, kw_only=True, rename={"global_": "global"}):
    """GQA's answer groups: questions of one global group share a distribution of answers (color, material, ...)."""

    global_: str | None = None
    local: str | None = None


class Boxes(msgspec.Struct, frozen=True, kw_only=True):
    """Boxes of the objects that a question, its answer and its full answer mention, by word position ("4" or "4:6")."""

    question: dict[str, Box] = {}
    answer: dict[str, Box] = {}
    full_answer: dict[str, Box] = {}


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question about an image. `answer` is None in test and challenge files."""

    question_id: str
    question: str
    answer: str | None = None
    full_answer: str | None = None
    types: Types = Types()
    groups: Groups = Groups()
    options: tuple[str, ...] = ()
    """What a `choose` question names as its alternatives, from GQA's functional program; empty when unknown."""
    steps: int | None = None
    """Reasoning steps as GQA's official script counts them; None without a functional program."""
    is_balanced: bool = True
    entailed: tuple[str, ...] = ()
    equivalent: tuple[str, ...] = ()
    boxes: Boxes = Boxes()

    @property
    def item_id(self) -> str:
        """The question id."""
        return self.question_id

    @property
    def kind(self) -> Kind:
        """Its answer, global group and types."""
        types = (("structural", self.types.structural), ("semantic", self.types.semantic))
        return Kind(self.answer, self.groups.global_, types)

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and its answer."""
        return self.question, self.answer or ""


class VqaQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """One question of VQA v2, or of Visual Genome beside it. Without answers in test files."""

    question_id: str
    question: str
    answer: str | None = None
    """VQA's `multiple_choice_answer`: the one that most annotators gave."""
    answers: tuple[str, ...] = ()
    """One for each annotator, in the order of the file."""
    question_type: str | None = None
    answer_type: str | None = None
    """yes/no, number or other."""
    source: str = "vqa"
    """vqa, or vg for a question of Visual Genome, which has one answer."""

    @property
    def item_id(self) -> str:
        """The question id."""
        return self.question_id

    @property
    def kind(self) -> Kind:
        """Its most frequent answer, and its types."""
        return Kind(self.answer, None, (("answer_type", self.answer_type), ("question_type", self.question_type)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and every annotator's answer."""
        return self.question, *self.answers


class ScoredQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """One question with a score for each answer that is right in part, as LXMERT has those of VQA and GQA."""

    question_id: str
    question: str
    label: dict[str, float] | None = None
    """Answer -> score, from 0 to 1; empty where no answer scores, None in test files."""
    source: Literal["vqa", "gqa"]
    """Whose submission format it is answered in."""
    question_type: str | None = None
    answer_type: str | None = None

    @property
    def item_id(self) -> str:
        """The question id."""
        return self.question_id

    @property
    def kind(self) -> Kind:
        """The answer that scores most, of several the first in alphabetical order; and its types, which VQA's have."""
        best = min(self.label or (), key=lambda answer: (-self.label[answer], answer), default=None)
        return Kind(best, None, (("answer_type", self.answer_type), ("question_type", self.question_type)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and its answers."""
        return self.question, *(self.label or ())


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence that is true of its images or not, or follows from them or not. `label` is None in test files."""

    statement_id: str
    statement: str
    label: str | None = None

    @property
    def item_id(self) -> str:
        """The statement id."""
        return self.statement_id

    @property
    def kind(self) -> Kind:
        """Its label."""
        return Kind(self.label)

    @property
    def texts(self) -> tuple[str, ...]:
        """The statement."""
        return (self.statement,)


Q = TypeVar("Q", Question, VqaQuestion, ScoredQuestion)


class _OneImage(msgspec.Struct, Generic[Q], frozen=True, kw_only=True):
    """The JSON member of a sample of one image with questions. `width` and `height` are those of the original image."""

    ITEMS: ClassVar[str] = "questions"

    image_id: str
    width: int
    height: int
    questions: tuple[Q, ...]
    """Sorted by question id."""

    @property
    def sample_id(self) -> str:
        """The image id."""
        return self.image_id

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The image."""
        return (Picture(image_id=self.image_id, width=self.width, height=self.height),)

    @property
    def items(self) -> tuple[Q, ...]:
        """The questions."""
        return self.questions

    @classmethod
    def of(cls, sample_id: str, pictures: Sequence[Picture], items: Sequence[Q]) -> Self:
        """The sample of one image."""
        (picture,) = pictures
        return cls(image_id=sample_id, width=picture.width, height=picture.height, questions=tuple(items))


class ImageSample(_OneImage[Question], frozen=True, kw_only=True):
    """An image with questions of GQA, or of one's own."""


class VqaSample(_OneImage[VqaQuestion], frozen=True, kw_only=True):
    """An image with questions of VQA v2."""


class ScoredSample(_OneImage[ScoredQuestion], frozen=True, kw_only=True):
    """An image with questions whose answers have scores."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON member of a sample of one image or several with statements about them."""

    ITEMS: ClassVar[str] = "statements"

    scene_id: str
    images: tuple[Picture, ...]
    """In the order of their members: KEY.0.jpg, KEY.1.jpg."""
    statements: tuple[Statement, ...]
    """Sorted by statement id."""

    @property
    def sample_id(self) -> str:
        """The scene id."""
        return self.scene_id

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The images."""
        return self.images

    @property
    def items(self) -> tuple[Statement, ...]:
        """The statements."""
        return self.statements

    @classmethod
    def of(cls, sample_id: str, pictures: Sequence[Picture], items: Sequence[Statement]) -> Self:
        """The sample of some images."""
        return cls(scene_id=sample_id, images=tuple(pictures), statements=tuple(items))


def with_lowercase_answer(question: Question) -> Question:
    """The question with its answer normalised, and with it the alternatives of which the answer is one."""
    return msgspec.structs.replace(
        question,
        answer=None if question.answer is None else normalise(question.answer),
        options=tuple(normalise(option) for option in question.options),
    )


def encode_sample(sample: Sample) -> bytes:
    """The sample as JSON with keys in a fixed order: the same sample always gives the same bytes."""
    return msgspec.json.encode(sample, order="deterministic")


S = TypeVar("S", bound=Sample)


def decode_sample(data: bytes | memoryview, kind: type[S] = ImageSample) -> S:
    """The inverse of `encode_sample`.

    Raises:
        msgspec.DecodeError: the bytes are not such a sample: no JSON, no UTF-8, nested too deep, or of another form.
    """
    try:
        return _decoder(kind).decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def decode_item(data: bytes | memoryview, kind: type[Sample] = ImageSample) -> Item:
    """An item of a sample by itself.

    Raises:
        msgspec.DecodeError: the bytes are no such item.
    """
    try:
        return _item_decoder(kind).decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def cut_items(data: bytes | memoryview, kind: type[Sample] = ImageSample) -> tuple[msgspec.Raw, ...]:
    """The items of a sample as JSON each, read over but not decoded: a quarter of the time.

    Raises:
        msgspec.DecodeError: the bytes are not such a sample.
    """
    try:
        return getattr(_cutter(kind).decode(data), kind.ITEMS)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def text_hash(text: str) -> int:
    """64 bits that tell whether two texts ask the same: those of the normalised text."""
    return int.from_bytes(hashlib.blake2b(normalise(text).encode(), digest_size=8).digest(), "little")


@cache
def _decoder(kind: type[S]) -> msgspec.json.Decoder[S]:
    return msgspec.json.Decoder(kind)


@cache
def _item_decoder(kind: type[Sample]) -> msgspec.json.Decoder[Item]:
    fields = {field.name: field.type for field in msgspec.inspect.type_info(kind).fields}
    return msgspec.json.Decoder(fields[kind.ITEMS].item_type.cls)


@cache
def _cutter(kind: type[Sample]) -> msgspec.json.Decoder:
    return msgspec.json.Decoder(msgspec.defstruct("Cut", [(kind.ITEMS, tuple[msgspec.Raw, ...])]))
