"""Answers: a decoder writes what a row of text asks for."""

from typing import Literal

import torch
from torch import Tensor

from model.parts.seam import Part, PartContext, PartOutput, Read
from model.towers.answer_towers import AnswerTower
from model.towers.ranking import Candidates
from shards.read.collate import IGNORED_LABEL, Targets, TextCodec


class AnswerPart(Part):
    """Cross-entropy of the answers, each weighted. Answers are written greedily, or chosen from a list.

    Args:
        max_tokens: length at which generation stops.
        tokens: how the cross-entropies of an answer's tokens are put together.
        candidates: the list to choose from.
        predicts: whether anybody reads what it would answer.
    """

    def __init__(
        self,
        tower: AnswerTower,
        codec: TextCodec | None,
        max_tokens: int,
        *,
        tokens: Literal["mean", "sum"] = "mean",
        candidates: Candidates | None = None,
        predicts: bool = True,
    ) -> None:
        self.tower, self.codec, self.max_tokens, self.candidates = tower, codec, max_tokens, candidates
        self._tokens, self._predicts = tokens, predicts

    def forward(self, read: Read) -> PartOutput:
        targets = read.block.targets
        losses = self.tower.losses(read.reading().states, read.block.mask, targets)
        if self._tokens == "sum":
            losses = losses * (targets.labels != IGNORED_LABEL).sum(dim=1)
        summed = (losses * targets.weight).sum()
        return PartOutput(summed, (summed.detach(), targets.weight.sum()))

    @property
    def writes(self) -> bool:
        """Whether what it predicts is written, and not chosen."""
        return self._predicts and self.candidates is None

    def predict(self, read: Read) -> Tensor | None:
        """(R, T) generated token ids; or (R,) places in the list of candidates."""
        if not self._predicts:
            return None
        if self.candidates is None:
            return self._generate(read)
        states = read.reading().states
        return self.tower.rank(states, read.block.mask, self.candidates.to(states.device)).numbers[:, 0]

    def _generate(self, read: Read) -> Tensor:
        return self.tower.generate(read.reading().states, read.block.mask, self.codec, self.max_tokens)

    def predict_with_probability(self, read: Read) -> tuple[Tensor, Tensor]:
        """(R, T) generated token ids, and the probability (R,) of each whole answer, its end token included."""
        ids = self._generate(read)
        return ids, self._probability(read, ids)

    def alternatives(self, read: Read, count: int) -> list[tuple[Tensor, Tensor]]:
        """Other answers than the one that is written, each with another first token, the most likely of those first.

        Returns:
            At most `count` pairs of (R, T) token ids and the probability (R,) of each whole answer.
        """
        states, mask, codec = read.reading().states, read.block.mask, self.codec
        logits = self.tower.first_logits(states, mask, codec.start_id).float()
        written = logits.argmax(dim=-1, keepdim=True)
        logits = logits.scatter(1, written, -torch.inf)
        logits[:, [codec.end_id, codec.pad_id]] = -torch.inf  # no answer at all
        firsts = logits.topk(min(count, logits.shape[1] - 3), dim=1).indices
        found = []
        for first in firsts.unbind(dim=1):
            ids = self.tower.generate(states, mask, codec, self.max_tokens, first=first)
            found.append((ids, self._probability(read, ids)))
        return found

    def _probability(self, read: Read, ids: Tensor) -> Tensor:
        states, mask, codec = read.reading().states, read.block.mask, self.codec
        ended = (ids == codec.end_id).long()
        labels = ids.masked_fill(ended.cumsum(dim=1) > ended, IGNORED_LABEL)  # what follows the end is no answer
        inputs = torch.cat([torch.full_like(ids[:, :1], codec.start_id), ids[:, :-1]], dim=1)
        rows = torch.arange(len(ids), device=ids.device)
        mean = self.tower.losses(states, mask, Targets(inputs, labels, rows, rows.float(), one_per_row=True))
        return (-mean * (labels != IGNORED_LABEL).sum(dim=1)).exp()


def make(context: PartContext) -> AnswerPart:
    """The part of a recipe."""
    answers, candidates = context.answers, None
    if answers.by == "rank":
        candidates = Candidates.of(
            context.classes, context.codec, most=answers.candidates, double_first_token=answers.double_first_token
        )
    return AnswerPart(
        context.tower,
        context.codec,
        context.max_answer_tokens,
        tokens=context.losses.answer_tokens,
        candidates=candidates,
        predicts=answers.by != "classify",
    )
