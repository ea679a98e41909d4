"""What answers a question over fused image tokens: BLIP's encoder and decoder, or T5.

Shapes: B images, N image tokens, Q questions, L question tokens, La answer tokens, D width of the fused tokens.
"""

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from model.checkpointing import run_layer, which_again
from model.losses import answer_loss
from model.towers.blip import decode_candidates, decode_next, decode_text, generate_greedily, keys_values_read
from model.towers.ranking import Candidates, Ranking, log_probability, rank
from model.towers.reading import BlipReader, Reading
from model.towers.t5 import forget_generation_settings, greedy
from shards.read.collate import Block, Targets, TextCodec


class AnswerTower(nn.Module, ABC):
    """Reads questions once; from what it has read come the loss and the generated answers."""

    @property
    @abstractmethod
    def read_width(self) -> int:
        """D that it reads."""

    @abstractmethod
    def read(self, fused: Tensor, block: Block) -> Reading:
        """(B, N, D) fused tokens and a block of questions to states (Q, ., .), which the other methods take."""

    @abstractmethod
    def losses(self, states: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        """(T,) float32: the mean cross-entropy of each answer's tokens; `mask` is that of the questions."""

    @abstractmethod
    def generate(
        self, states: Tensor, mask: Tensor, codec: TextCodec, max_tokens: int, *, first: Tensor | None = None
    ) -> Tensor:
        """(Q, T) most likely token ids without the start token, T <= max_tokens; pad behind the end token.

        Args:
            first: (Q,) the first token of each answer, in place of the most likely one.
        """

    @abstractmethod
    def first_logits(self, states: Tensor, mask: Tensor, start_id: int) -> Tensor:
        """(Q, V) logits of the first token of an answer."""

    @abstractmethod
    def rank(self, states: Tensor, mask: Tensor, candidates: Candidates) -> Ranking:
        """The answers of a list, best first."""


class BlipAnswerTower(BlipReader, AnswerTower):
    """BLIP's VQA side: the questions of an image share the keys and values of its tokens.

    Args:
        text_decoder: None where no answer is written.
        checkpointing: part of the layers to compute again in the backward pass.
    """

    def __init__(self, text_encoder: nn.Module, text_decoder: nn.Module | None, *, checkpointing: float = 0.0) -> None:
        super().__init__(text_encoder, checkpointing=checkpointing)
        self.text_decoder = text_decoder

    def losses(self, states: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        states, mask = _behind(states, targets), _behind(mask, targets)
        logits = decode_text(self.text_decoder, targets.ids, states, mask, checkpointing=self._checkpointing)
        return answer_loss(logits, targets.labels)

    def generate(
        self, states: Tensor, mask: Tensor, codec: TextCodec, max_tokens: int, *, first: Tensor | None = None
    ) -> Tensor:
        return generate_greedily(
            self.text_decoder,
            states,
            mask,
            start_id=codec.start_id,
            end_id=codec.end_id,
            pad_id=codec.pad_id,
            max_tokens=max_tokens,
            first=first,
        )

    def first_logits(self, states: Tensor, mask: Tensor, start_id: int) -> Tensor:
        readable, read = mask[:, None, None, :], keys_values_read(self.text_decoder, states)
        starts = torch.full((len(states), 1), start_id, device=states.device)
        return decode_next(self.text_decoder, starts, None, read, readable)[0]

    def rank(self, states: Tensor, mask: Tensor, candidates: Candidates) -> Ranking:
        readable, read = mask[:, None, None, :], keys_values_read(self.text_decoder, states)
        starts = candidates.ids[:1, :1].expand(len(states), 1)
        first, _ = decode_next(self.text_decoder, starts, None, read, readable)

        def whole(numbers: Tensor) -> Tensor:
            ids, labels = candidates.ids[numbers], candidates.labels[numbers]
            parts = [
                log_probability(logits, labels[:, some])
                for some, logits in decode_candidates(self.text_decoder, ids, read, readable)
            ]
            return torch.cat(parts, dim=1)

        return rank(first.float().log_softmax(dim=-1), whole, candidates)


class T5AnswerTower(AnswerTower):
    """T5 whose encoder reads the image tokens in front of the question's own.

    Its encoder mixes both in every layer, so nothing of an image can be shared between questions: a question costs
    N + L tokens, where BLIP's costs L that look at N.

    Args:
        model: T5, of any version that `T5ForConditionalGeneration` loads. What its own generation settings say of
            lengths and repetitions does not apply.
        checkpointing: part of the blocks to compute again in the backward pass, in eval mode too, as frozen towers are.
    """

    def __init__(self, model: T5ForConditionalGeneration, *, checkpointing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        forget_generation_settings(model)
        for stack in (model.encoder.block, model.decoder.block):
            for block, again in which_again(stack, checkpointing):
                block.forward = partial(run_layer, block.forward, again)

    @property
    def read_width(self) -> int:
        return self.model.config.d_model

    def read(self, fused: Tensor, block: Block) -> Reading:
        words = self.model.shared(block.ids)
        tokens = torch.cat([fused.to(words.dtype)[block.image], words], dim=1)
        readable = _readable(tokens, block.mask)
        return Reading(self.model.encoder(inputs_embeds=tokens, attention_mask=readable).last_hidden_state, None)

    def losses(self, states: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        states, mask = _behind(states, targets), _behind(mask, targets)
        logits = self.model(
            encoder_outputs=(states,),
            attention_mask=_readable(states, mask),
            decoder_input_ids=targets.ids,
            use_cache=False,  # a recomputed block would find its own keys in it
        ).logits
        return answer_loss(logits, targets.labels)

    def generate(
        self, states: Tensor, mask: Tensor, codec: TextCodec, max_tokens: int, *, first: Tensor | None = None
    ) -> Tensor:
        given, written = {}, 0
        if first is not None:
            given, written = {"decoder_input_ids": torch.stack([torch.full_like(first, codec.start_id), first], 1)}, 1
        generated = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=_readable(states, mask),
            generation_config=greedy(
                start_id=codec.start_id, end_id=codec.end_id, pad_id=codec.pad_id, max_new_tokens=max_tokens - written
            ),
            **given,
        )
        return generated[:, 1:]

    def first_logits(self, states: Tensor, mask: Tensor, start_id: int) -> Tensor:
        starts = torch.full((len(states), 1), start_id, device=states.device)
        readable = _readable(states, mask)
        return self.model(encoder_outputs=(states,), attention_mask=readable, decoder_input_ids=starts).logits[:, 0]

    def rank(self, states: Tensor, mask: Tensor, candidates: Candidates) -> Ranking:
        readable = _readable(states, mask)
        starts = candidates.ids[:1, :1].expand(len(states), 1)
        first = self.model(encoder_outputs=(states,), attention_mask=readable, decoder_input_ids=starts).logits[:, 0]

        def whole(numbers: Tensor) -> Tensor:  # one candidate of every question at a time: T5 shares no keys
            scores = []
            for number in numbers.unbind(dim=1):
                ids, labels = candidates.ids[number], candidates.labels[number]
                given = {"encoder_outputs": (states,), "attention_mask": readable, "decoder_input_ids": ids}
                scores.append(log_probability(self.model(**given).logits, labels))
            return torch.stack(scores, dim=1)

        return rank(first.float().log_softmax(dim=-1), whole, candidates)


def _behind(rows: Tensor, targets: Targets) -> Tensor:
    """What each target is written behind: (Q, ...) to (T, ...)."""
    return rows if targets.one_per_row else rows[targets.row]


def _readable(tokens: Tensor, mask: Tensor) -> Tensor:
    """(Q, N + L) int64 mask: every image token, and the question's own."""
    return nn.functional.pad(mask.long(), (tokens.shape[1] - mask.shape[1], 0), value=1)
