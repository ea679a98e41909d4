"""The plain path: a row of text has an image of its own, and `transformers` modules run their own forward.

This is how the public trainers of BLIP treat a question (LAVIS' `blip_vqa`): every row's image goes through the vision
transformer, here also through the fusion encoder, keys and values of its tokens are projected per row, and rows are
padded to the longest. A question-answer pair to match is a row like any other; `image_per_question` is the thriftier
trainer that keeps a question's image for its pairs. The text modules of BLIP are eager only; what is trained, DIFNet,
is the same module as in the grouped path.

Shapes: B images, R rows of text, L tokens of a row, N image tokens, D width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from model.fusion_objective import FusionObjective
from model.losses import answer_loss, matching_loss
from shards.read.collate import IGNORED_LABEL, Block
from trainer.bench.workload import Workload


class Rows(NamedTuple):
    """Rows of text as a loader without grouping gives them."""

    pixels: Tensor
    """(R, 3, S, S) uint8: the image of each row, as often as it has rows"""
    image: Tensor
    """(R,) int64 place of that image in the grouped batch"""
    ids: Tensor
    """(R, L) int64, L the longest"""
    mask: Tensor
    """(R, L) bool"""

    @classmethod
    def of(cls, pixels: Tensor, block: Block) -> "Rows":
        """Rows of a grouped batch, cut to the longest."""
        longest = int(block.mask.sum(dim=1).max())
        texts = (part[:, :longest].contiguous() for part in (block.ids, block.mask))
        return cls(pixels[block.image], block.image, *texts)


class PlainPath:
    """Losses of a workload, one question per row. Its rows are made here once: a loader would deliver them."""

    def __init__(self, workload: Workload) -> None:
        self._objective, self._batch = workload
        self._ask, self._match = self._batch.blocks["ask"], self._batch.blocks["match"]
        self.questions, self.pairs = (Rows.of(self._batch.shown, block) for block in (self._ask, self._match))
        self._answer_mask = self._ask.targets.labels != IGNORED_LABEL
        attend_to_question_tokens_alone(self._objective.tower("answer").text_decoder)

    def plain(self) -> Iterator[Tensor]:
        """Every row, of questions and of pairs, has its image encoded and fused."""
        yield self._answer_loss(self._fuse_each(self.questions))
        yield self._match_loss(self._fuse_each(self.pairs))

    def image_per_question(self) -> Iterator[Tensor]:
        """An image is encoded and fused once per question, and the pairs of the question read the result."""
        fused = self._fuse_each(self.questions)
        yield self._answer_loss(fused) + self._match_loss(fused[self._match.item])

    def images_once(self) -> Iterator[Tensor]:
        """The vision transformer runs once per image; from there on everything is per row."""
        tokens = self._encode(self._batch.shown)
        yield self._answer_loss(self._fuse(tokens[self.questions.image], self.questions))
        yield self._match_loss(self._fuse(tokens[self.pairs.image], self.pairs))

    def _fuse_each(self, rows: Rows) -> Tensor:
        return self._fuse(self._encode(rows.pixels), rows)

    def _fuse(self, tokens: Tensor, rows: Rows) -> Tensor:
        maps = self._objective.tower("second_stream").maps
        return self._objective.fusion(tokens, maps[rows.image])

    def _encode(self, pixels: Tensor) -> Tensor:
        return plain_image_tokens(self._objective, pixels)

    def _answer_loss(self, fused: Tensor) -> Tensor:
        tower, targets = self._objective.tower("answer"), self._ask.targets
        states = _encode_text(tower.text_encoder, self.questions, fused)
        logits = tower.text_decoder(
            input_ids=targets.ids,
            attention_mask=self._answer_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=self.questions.mask,
            use_cache=False,
        ).logits
        return (answer_loss(logits, targets.labels) * targets.weight).sum() * self._batch.loss_scale

    def _match_loss(self, fused: Tensor) -> Tensor:
        tower, match = self._objective.tower("match"), self._match
        states = _encode_text(tower.text_encoder, self.pairs, fused)
        losses = matching_loss(tower.itm_head(states[:, 0]), match.labels)
        return (losses * match.weight).sum() * self._batch.loss_scale


@torch.no_grad()
def plain_image_tokens(objective: FusionObjective, pixels: Tensor) -> Tensor:
    """(R, 3, S, S) uint8 to (R, N, D) through the vision tower's own forward."""
    sight = objective.sight
    return sight.module(pixel_values=sight.inputs(pixels)).last_hidden_state


def _encode_text(encoder: nn.Module, rows: Rows, fused: Tensor) -> Tensor:
    return encoder(
        input_ids=rows.ids,
        attention_mask=rows.mask,
        encoder_hidden_states=fused,
        encoder_attention_mask=torch.ones(fused.shape[:2], dtype=torch.bool, device=fused.device),
    ).last_hidden_state


def attend_to_question_tokens_alone(decoder: BlipTextLMHeadModel) -> None:
    """Make the decoder's own forward heed `encoder_attention_mask`, as the original BLIP does.

    In transformers 5.17 to 5.23 a layer hands it to its cross-attention under the name `attention_mask`, which
    cross-attention does not look at: the decoder would read the padding of the questions, and the gradients would
    differ from those of any implementation that does not.
    """
    for layer in decoder.bert.encoder.layer:
        layer.crossattention.self.register_forward_pre_hook(_hand_over_the_mask, with_kwargs=True)


def _hand_over_the_mask(_: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if named.get("encoder_attention_mask") is None:
        named = {**named, "encoder_attention_mask": named.get("attention_mask")}
    return inputs, named
