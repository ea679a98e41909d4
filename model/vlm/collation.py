"""Visits to sequences: the images with the prefix in front, then every question with its answer behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.towers.checkpoint_files import short_reason
from model.vlm.batch import PADDING, PREFIX, Asked, Learnt, Sequences, VlmBatch, Windows
from model.vlm.prompt import ChatPrompt, Row, TokenIds, Turn, row_ids
from shards.errors import DataError
from shards.format.images import as_rgb, decode_image
from shards.format.index import SplitIndex
from shards.read.collation import Collated, SeenVisit
from shards.read.eyes import Augment
from shards.tasks.seam import Row as TaskRow
from shards.tasks.seam import Target

Questions = Literal["shared", "rows", "conversation"]
"""How the questions about an image stand in sequences."""

BLOCK = "ask"
"""The only block that a vision-language model reads."""

_LENGTH_MULTIPLE = 8
_NO_ANSWER = Target("", 0.0)


class OwnSizeEyes:
    """Pixels in the size that the image has: the checkpoint's own processor resizes them."""

    @property
    def blank(self) -> Tensor:
        """Black, and large enough for any processor."""
        return torch.zeros(3, 64, 64, dtype=torch.uint8)

    def see(self, data: bytes, where: str, augment: Augment | None = None) -> Tensor:
        """(3, H, W) uint8: upright, in RGB on white.

        Raises:
            UnreadableImage: not a JPEG, PNG or WebP image of a sane size, or damaged.
        """
        image = decode_image(data, where).image
        return own_size(image if augment is None else augment(as_rgb(image)))


def own_size(image: Image.Image) -> Tensor:
    """A decoded image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(as_rgb(image))).permute(2, 0, 1)


class _Line(NamedTuple):
    """A sequence before it is padded."""

    prefix: int
    """Which of the encoded prefixes it begins with."""
    rows: list[Row]
    """Behind it, each in a segment of its own."""


@dataclass(frozen=True, kw_only=True)
class VlmCollation:
    """How a vision-language model's micro-batches are made."""

    prompt: ChatPrompt
    questions: Questions
    max_tokens: int
    """The most that a prefix and one of its questions may have."""
    finds_pages: bool = False
    """Whether the model is to say which of the images of a question shows its answer."""

    @property
    def modules(self) -> set[str]:
        """See `shards.read.collation.Collation.modules`."""
        return {__name__, type(self.prompt.processor).__module__}

    def eyes(self, index: SplitIndex, image_size: int | None) -> OwnSizeEyes:  # noqa: ARG002 - the processor resizes
        """Whole images."""
        return OwnSizeEyes()

    def collate(
        self, visits: Sequence[SeenVisit], *, loss_scale: float, eyes: OwnSizeEyes, blanks: int, answering: bool
    ) -> Collated:
        """See `shards.read.collation.Collation.collate`.

        Raises:
            DataError: a prefix with a question is longer than the model's context, or a text has a special token.
        """
        empty = SeenVisit([eyes.blank] * blanks, {BLOCK: [TaskRow("", 0)]}, 1, "nothing")
        shown = visits or [empty]
        cut, asked = 0, []
        for visit in shown:
            texts = [_cut(self.prompt, row.text, self.prompt.max_question_tokens, visit) for row in visit.rows[BLOCK]]
            asked.append([text for text, _ in texts])
            cut += sum(was_cut for _, was_cut in texts)
        lines, weights = self._learnt_lines(shown, asked)
        encoded = self._encode(shown, lines)
        sequences, offsets = self._sequences(shown, lines, encoded)
        learnt = learnt_of([line.rows for line in lines], offsets, sequences.ids.shape[1], weights)
        windows = self._windows(shown, lines, sequences, learnt) if self.finds_pages else None
        made = VlmBatch(sequences, learnt, windows, None, torch.tensor(loss_scale, dtype=torch.float32))
        if answering:
            made = made._replace(asked=self._asked(shown, asked, lines, encoded))
        return Collated(made, cut)

    def _learnt_lines(self, visits: Sequence[SeenVisit], asked: Sequence[Sequence[str]]) -> tuple[list[_Line], Tensor]:
        """The sequences with answers, and the weight of each answer in their order."""
        lines, weights = [], []
        for number, (visit, texts) in enumerate(zip(visits, asked, strict=True)):
            turns = [
                (Turn(text, self._answer(target.text, visit)), target.weight)
                for text, row in zip(texts, visit.rows[BLOCK], strict=True)
                for target in row.targets or (_NO_ANSWER,)
            ]
            weights += [weight for _, weight in turns]
            count = len(visit.images)
            if self.questions == "conversation":
                lines.append(_Line(number, [self.prompt.row(count, [turn for turn, _ in turns])]))
                continue
            rows = [self.prompt.row(count, [turn]) for turn, _ in turns]
            lines += [_Line(number, rows)] if self.questions == "shared" else [_Line(number, [row]) for row in rows]
        return lines, torch.tensor(weights)

    def _windows(
        self, visits: Sequence[SeenVisit], lines: Sequence[_Line], sequences: Sequences, learnt: Learnt
    ) -> Windows:
        """Which pages the questions of sequences are asked of."""
        page = torch.full_like(sequences.ids, -1)
        for number, line in enumerate(lines):
            visit = visits[line.prefix]
            ids = sequences.ids[number][sequences.segment[number] == PREFIX].tolist()
            try:
                page[number, : len(ids)] = torch.tensor(self.prompt.images_of(ids, visit.images))
            except DataError as error:
                raise DataError(f"{visit.where}: {error}") from None
        place = torch.full((len(learnt.weight), max(len(visit.images) for visit in visits)), -1)
        shown, weights = [], []
        for visit in visits:
            for row in visit.rows[BLOCK]:
                places = row.places or tuple(range(len(visit.images)))
                known = row.label in row.places
                for _ in row.targets or (_NO_ANSWER,):
                    place[len(shown), : len(places)] = torch.tensor(places)
                    shown.append(places.index(row.label) if known else 0)
                    weights.append(row.weight if known else 0.0)
        starts = (learnt.lengths.cumsum(dim=0) - learnt.lengths).long()
        return Windows(page, learnt.at[starts], place, torch.tensor(shown), torch.tensor(weights))

    def _answer(self, text: str, visit: SeenVisit) -> str:
        return _cut(self.prompt, text, self.prompt.max_answer_tokens - 1, visit)[0]

    def _asked(
        self,
        visits: Sequence[SeenVisit],
        asked: Sequence[Sequence[str]],
        learnt: Sequence[_Line],
        encoded: Mapping[str, Any],
    ) -> Asked:
        """The questions alone; with the images of `learnt`, whose encoding is at hand, if they are as many."""
        lines: list[_Line] = []
        for number, (visit, texts) in enumerate(zip(visits, asked, strict=True)):
            rows = [Row(self.prompt.prompt(len(visit.images), text), ()) for text in texts]
            lines += [_Line(number, [row]) for row in rows] if self.questions == "rows" else [_Line(number, rows)]
        same = [line.prefix for line in lines] == [line.prefix for line in learnt]
        sequences, offsets = self._sequences(visits, lines, encoded if same else self._encode(visits, lines))
        length = sequences.ids.shape[1]
        at = [
            number * length + start + len(row.ids) - 1
            for number, (line, starts) in enumerate(zip(lines, offsets, strict=True))
            for row, start in zip(line.rows, starts, strict=True)
        ]
        if same:
            sequences = sequences._replace(media={})
        return Asked(sequences, torch.tensor(at))

    def _encode(self, visits: Sequence[SeenVisit], lines: Sequence[_Line]) -> dict[str, Any]:
        """What the processor makes of the images and prefixes of sequences."""
        images = [visits[line.prefix].images for line in lines]
        texts = [self.prompt.prefix(len(shown)) for shown in images]
        try:
            return self.prompt.encode(texts, images)
        except (ValueError, RuntimeError) as error:  # of a picture that is too narrow, or too small
            where = " or ".join(dict.fromkeys(visits[line.prefix].where for line in lines))
            source = self.prompt.source
            raise DataError(f"{where}: the processor of {source} refuses an image: {short_reason(error)}") from None

    def _sequences(
        self, visits: Sequence[SeenVisit], lines: Sequence[_Line], encoded: Mapping[str, Any]
    ) -> tuple[Sequences, list[list[int]]]:
        """Padded sequences, and where the rows of each begin."""
        prefixes = [self.prompt.shared(ids) for ids in row_ids(encoded)]
        for prefix, line in zip(prefixes, lines, strict=True):
            self._check_length(visits[line.prefix], prefix, line)
        laid = lay_out(prefixes, [line.rows for line in lines], pad_id=_pad_id(self.prompt))
        kinds, media = _beside(encoded, prefixes, tuple(laid.ids.shape))
        return Sequences(laid.ids, laid.segment, laid.place, kinds, media), laid.starts

    def _check_length(self, visit: SeenVisit, prefix: TokenIds, line: _Line) -> None:
        longest = max(len(row.ids) for row in line.rows)
        if len(prefix) + longest > self.max_tokens:
            raise DataError(
                f"{visit.where}: {len(visit.images)} images give {len(prefix):,} tokens and a question with its answer "
                f"up to {longest:,}, but {self.prompt.source} reads {self.max_tokens:,}; build the shards with smaller "
                "images (--resize), show fewer of them, or raise vlm.max_tokens"
            )


class LaidOut(NamedTuple):
    """Sequences of tokens, padded; fields as in `Sequences`."""

    ids: Tensor
    segment: Tensor
    place: Tensor
    starts: list[list[int]]
    """Where the rows of each sequence begin."""


def lay_out(prefixes: Sequence[TokenIds], rows: Sequence[Sequence[Row]], *, pad_id: int) -> LaidOut:
    """Each prefix with its rows behind, padded to the longest rounded up to 8."""
    starts = [_starts(prefix, behind) for prefix, behind in zip(prefixes, rows, strict=True)]
    longest = max(ends[-1] for ends in starts)
    shape = (len(prefixes), -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    segment, place = torch.full(shape, PADDING), torch.zeros(shape, dtype=torch.int64)
    for number, (prefix, behind) in enumerate(zip(prefixes, rows, strict=True)):
        begin = 0
        for part, tokens in enumerate([prefix, *(row.ids for row in behind)], start=PREFIX):
            end = begin + len(tokens)
            ids[number, begin:end] = torch.tensor(tokens)
            segment[number, begin:end] = part
            place[number, begin:end] = torch.arange(len(tokens))
            begin = end
    return LaidOut(ids, segment, place, [begins[:-1] for begins in starts])


def _cut(prompt: ChatPrompt, text: str, limit: int, visit: SeenVisit) -> tuple[str, bool]:
    try:
        return prompt.cut(text, limit)
    except DataError as error:
        raise DataError(f"{visit.where}: {error}") from None


def _pad_id(prompt: ChatPrompt) -> int:
    """Nobody sees it; an embedding has to have it."""
    return prompt.end_ids[0] if prompt.tokenizer.pad_token_id is None else prompt.tokenizer.pad_token_id


def _starts(prefix: TokenIds, rows: Sequence[Row]) -> list[int]:
    """Where each row begins behind its prefix, and where the last one ends."""
    found = [len(prefix)]
    for row in rows:
        found.append(found[-1] + len(row.ids))
    return found


def _beside(
    encoded: Mapping[str, Any], prefixes: Sequence[TokenIds], shape: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the processor says of tokens, laid out as they are, and what it makes of images."""
    mask = encoded["attention_mask"].bool()
    kinds, media = {}, {}
    for name, value in encoded.items():
        if name in ("input_ids", "attention_mask"):
            continue
        if name.endswith("token_type_ids"):
            kinds[name] = torch.zeros(shape, dtype=torch.int64)
            for number, prefix in enumerate(prefixes):
                kinds[name][number, : len(prefix)] = value[number][mask[number]][: len(prefix)]
        elif isinstance(value, Tensor):
            media[name] = value
    return kinds, media


def learnt_of(rows: Sequence[Sequence[Row]], starts: Sequence[Sequence[int]], length: int, weights: Tensor) -> Learnt:
    """What is learnt of the rows of sequences of a length that begin at `starts`; an answer's weight each."""
    at, token, answer, lengths = [], [], [], []
    for number, (behind, begins) in enumerate(zip(rows, starts, strict=True)):
        for row, begin in zip(behind, begins, strict=True):
            for first, end in row.spans:
                at += [number * length + begin + place - 1 for place in range(first, end)]
                token += row.ids[first:end]
                answer += [len(lengths)] * (end - first)
                lengths.append(end - first)
    return Learnt(
        torch.tensor(at), torch.tensor(token), torch.tensor(answer), weights, torch.tensor(lengths, dtype=torch.float32)
    )
