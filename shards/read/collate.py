"""Visits in, one padded micro-batch out: pixels once per image, questions flattened with the index of their image."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shards.format.records import Question

IGNORED_LABEL = -100
_LENGTH_MULTIPLE = 8
"""Lengths are rounded up to this: tensor cores want it, and fewer distinct shapes mean fewer allocations."""

TokenIds = list[int]


class TextCodec(Protocol):
    """What the loader needs of a tower's tokenizer; `model.towers.tokenizer` has those that are used."""

    pad_id: int
    start_id: int
    """The decoder's first input."""
    end_id: int
    """Ends an answer."""

    def questions(self, texts: Sequence[str]) -> tuple[list[TokenIds], list[bool]]:
        """Token ids of each question, with special tokens, cut to the limit; and whether it had to be cut."""

    def answers(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each answer, without special tokens, cut so that start or end token still fit."""


class PairCodec(TextCodec, Protocol):
    """That of a tower which also matches pairs."""

    def pairs(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[list[TokenIds], list[bool]]:
        """Token ids of `question [SEP] answer`, with special tokens; and whether the question had to be cut."""


class Batch(NamedTuple):
    """The tensors of one micro-batch. B images, Q questions, R question-answer pairs to match, L lengths.

    Rows of images, questions and pairs are sorted by image. A micro-batch without any real visit holds one black image
    and one row of weight 0, so that every rank runs the same layers.
    """

    pixels: Tensor
    """(B, 3, S, S) uint8"""
    question_ids: Tensor
    """(Q, Lq) int64; (0, 0) when answers are neither trained nor generated"""
    question_mask: Tensor
    """(Q, Lq) bool, True at tokens"""
    question_image: Tensor
    """(Q,) int64 row of `pixels`"""
    answer_ids: Tensor
    """(Q, La) int64 decoder input: start token, then the answer"""
    answer_labels: Tensor
    """(Q, La) int64: the answer, then the end token; -100 at padding"""
    answer_weight: Tensor
    """(Q,) float32: 1, or 0 for padding and for questions without an answer"""
    match_ids: Tensor
    """(R, Lm) int64 `question [SEP] answer`; (0, 0) when matching is not trained"""
    match_mask: Tensor
    """(R, Lm) bool"""
    match_image: Tensor
    """(R,) int64 row of `pixels`"""
    match_question: Tensor
    """(R,) int64 row of `question_ids`: the question that the pair, or the one it is a negative of, asks"""
    match_labels: Tensor
    """(R,) int64: 1 for the image's own pair, 0 for a negative"""
    match_weight: Tensor
    """(R,) float32: the weights of a question's positive, and of its negatives together, are 1/2 each at the most"""
    loss_scale: Tensor
    """() float32: what the sums over questions are multiplied with (world size x accumulation / N, or 1)"""
    questions_per_image: int
    """The most questions that one image of this micro-batch has: known here, so that no GPU is asked for it."""
    pairs_per_image: int
    """The same for question-answer pairs."""
    pairs_per_question: int
    """The most pairs of one question."""
    tokens_in_questions: int
    """Tokens of all questions, padding left out."""
    tokens_in_pairs: int
    """The same for question-answer pairs."""

    def each_question_alone(self) -> "Batch":
        """The batch for image tokens that differ from question to question: row i of them is that of question i."""
        return self._replace(
            question_image=torch.arange(len(self.question_ids), device=self.question_image.device),
            match_image=self.match_question,
            questions_per_image=1,
            pairs_per_image=self.pairs_per_question,
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copies do not block."""
        moved = (value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for value in self)
        return Batch(*moved)


class VisitTexts(NamedTuple):
    """The questions of one visit and their negatives: `negatives[i]` lists those of `questions[i]`."""

    questions: list[Question]
    negatives: list[list[tuple[str, str]]]
    """(question, answer) pairs that are wrong for the image."""
    negatives_asked: int
    """Kinds of negatives that the recipe asks for; a missing one has weight 0 and the others keep theirs."""


def collate(
    pixels: list[Tensor],
    visits: list[VisitTexts],
    *,
    answer_codec: TextCodec | None,
    match_codec: PairCodec | None,
    loss_scale: float,
    image_size: int,
) -> tuple[Batch, int]:
    """One micro-batch, and how many of its texts were cut at the limit of question tokens.

    Args:
        pixels: one (3, S, S) uint8 tensor per visit.
        visits: the texts of each visit; as many as `pixels`.
        answer_codec: None leaves the answer tensors empty.
        match_codec: None leaves the match tensors empty.
        loss_scale: see `Batch.loss_scale`.
        image_size: S, for the black image of an empty micro-batch.
    """
    images = torch.stack(pixels) if pixels else torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
    answering, cut = _collate_answers(visits, answer_codec)
    matching, cut_in_pairs = _collate_matches(visits, match_codec)
    most = _most_rows(answering[2]), _most_rows(matching[2]), _most_rows(matching[3])
    scale = torch.tensor(loss_scale, dtype=torch.float32)
    tokens = int(answering[1].sum()), int(matching[1].sum())
    batch = Batch(images, *answering, *matching, scale, *most, *tokens)
    return batch, cut if answer_codec is not None else cut_in_pairs


def _collate_answers(visits: list[VisitTexts], codec: TextCodec | None) -> tuple[tuple[Tensor, ...], int]:
    if codec is None:
        return _no_answers(), 0
    questions = [question for visit in visits for question in visit.questions]
    image = [row for row, visit in enumerate(visits) for _ in visit.questions]
    weights = [float(question.answer is not None) for question in questions]
    if not questions:
        questions, image, weights = [Question(question_id="", question="")], [0], [0.0]
    ids, cut = codec.questions([question.question for question in questions])
    answers = codec.answers([question.answer or "" for question in questions])
    question_ids, question_mask = pad(ids, codec.pad_id, multiple=_LENGTH_MULTIPLE)
    decoder_ids, _ = pad([[codec.start_id, *answer] for answer in answers], codec.pad_id)
    labels, _ = pad([[*answer, codec.end_id] for answer in answers], IGNORED_LABEL)
    return (question_ids, question_mask, torch.tensor(image), decoder_ids, labels, torch.tensor(weights)), sum(cut)


def _no_answers() -> tuple[Tensor, ...]:
    none, rows = torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return none, none.bool(), rows, none, none, rows.float()


def _collate_matches(visits: list[VisitTexts], codec: PairCodec | None) -> tuple[tuple[Tensor, ...], int]:
    if codec is None:
        none, rows = torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        return (none, none.bool(), rows, rows, rows, rows.float()), 0
    texts: list[tuple[str, str]] = []
    image, asked, labels, weights = [], [], [], []
    number = -1
    for row, visit in enumerate(visits):
        for question, negatives in zip(visit.questions, visit.negatives, strict=True):
            number += 1
            if question.answer is None:
                continue
            texts += [(question.question, question.answer), *negatives]
            labels += [1] + [0] * len(negatives)
            weights += [0.5] + [0.5 / max(visit.negatives_asked, 1)] * len(negatives)
            image += [row] * (1 + len(negatives))
            asked += [number] * (1 + len(negatives))
    if not texts:
        texts, image, asked, labels, weights = [("", "")], [0], [0], [0], [0.0]
    ids, cut = codec.pairs(*zip(*texts, strict=True))
    match_ids, match_mask = pad(ids, codec.pad_id, multiple=_LENGTH_MULTIPLE)
    own_cut = sum(was_cut for was_cut, label in zip(cut, labels, strict=True) if label)
    rows = (torch.tensor(values) for values in (image, asked, labels, weights))
    return (match_ids, match_mask, *rows), own_cut


def _most_rows(image: Tensor) -> int:
    """The most rows that share an image."""
    return int(torch.bincount(image).max()) if len(image) else 0


def pad(rows: list[TokenIds], value: int, *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, padded behind to the longest rounded up to `multiple`: (rows, L) ids and bool mask."""
    longest = max(map(len, rows))
    length = -(-longest // multiple) * multiple
    ids = torch.full((len(rows), length), value, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = True
    return ids, mask
