"""What a sample says: one image with all its questions, as stored in the JSON member of a shard."""

import msgspec

from shards.lower_case import normalise

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


class ImageSample(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON member of a sample. `width` and `height` are those of the original image."""

    image_id: str
    width: int
    height: int
    questions: tuple[Question, ...]
    """Sorted by question id."""

    @property
    def items(self) -> tuple[Question, ...]:
        """The questions."""
        return self.questions


def with_lowercase_answer(question: Question) -> Question:
    """The question with its answer normalised, and with it the alternatives of which the answer is one."""
    return msgspec.structs.replace(
        question,
        answer=None if question.answer is None else normalise(question.answer),
        options=tuple(normalise(option) for option in question.options),
    )


def encode_sample(sample: ImageSample) -> bytes:
    """The sample as JSON with keys in a fixed order: the same sample always gives the same bytes."""
    return msgspec.json.encode(sample, order="deterministic")


_decoder = msgspec.json.Decoder(ImageSample)


def decode_sample(data: bytes | memoryview) -> ImageSample:
    """The inverse of `encode_sample`.

    Raises:
        msgspec.DecodeError: the bytes are not such a sample: no JSON, no UTF-8, nested too deep, or of another form.
    """
    try:
        return _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
