"""The objective: pixels and questions in, one loss out. It is the module that the engine trains.

Its registered children are exactly the trained parts. Frozen towers hang on it as plain references, so that the engine
neither shards, casts, broadcasts nor saves them; gradients still flow through them to the fusion encoder.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BlipVisionModel

from model.config import GuidanceConfig, LossConfig, Part
from model.looking.guidance import look
from model.losses import matching_loss
from model.pixels import blip_pixels
from model.precision import t5_dtype
from model.rows import Grouping
from model.towers.answer_towers import AnswerTower, T5AnswerTower
from model.towers.blip import encode_image, encode_text
from model.towers.match_tower import MatchTower
from shards.read.collate import IGNORED_LABEL, Batch, TextCodec

SUM_NAMES = ("answer_loss", "answered", "itm_loss", "matched", "itm_positives", "itm_negatives", "itm_correct")
"""What is summed over questions in every micro-batch, so that any number of ranks and steps merges exactly."""


class StepOutput(NamedTuple):
    """What a training forward gives."""

    loss: Tensor
    """() float32, scaled with `Batch.loss_scale`."""
    sums: Tensor
    """(len(SUM_NAMES),) float32, detached."""


class EvaluationOutput(NamedTuple):
    """What an evaluation forward gives."""

    sums: Tensor
    """(len(SUM_NAMES),) float32."""
    answer_ids: Tensor | None
    """(Q, T) generated tokens; None when the recipe trains no answers."""


class Towers(NamedTuple):
    """The parts around the fusion encoder; None where the recipe uses none."""

    vision: BlipVisionModel
    second_stream: nn.Module | None
    """(B, 3, S, S) uint8 to a (B, C, h, w) map."""
    match: MatchTower | None
    answer: AnswerTower | None


class Objective(nn.Module):
    """Matching and answering over fused image tokens.

    Args:
        fusion: (tokens (B, N, D), map (B, C, h, w) or None) to (B, N, D') fused tokens.
        towers: built parts; those named in `freeze` are frozen here and kept unregistered.
        freeze: parts that are not trained.
        adapters: trained leaf modules inside of frozen parts, by part.
        losses: weights.
        answer_codec: the special ids of generation; None without an answer tower.
        max_answer_tokens: length at which generation stops.
        guidance: how a question looks, where the second stream is an EfficientSamMaskStream.
        checkpointing: recompute layers of the matching tower, and of an unfrozen vision tower, in the backward pass.
    """

    def __init__(
        self,
        fusion: nn.Module,
        towers: Towers,
        *,
        freeze: Iterable[Part],
        adapters: Mapping[str, nn.Module] | None = None,
        losses: LossConfig,
        answer_codec: TextCodec | None,
        max_answer_tokens: int,
        guidance: GuidanceConfig | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.fusion, self._guidance = fusion, guidance
        self._frozen: dict[str, nn.Module] = {}
        self._losses, self._codec = losses, answer_codec
        self._max_answer_tokens, self._checkpointing = max_answer_tokens, checkpointing
        frozen = set(freeze)
        for name, tower in towers._asdict().items():
            if tower is None:
                continue
            if name in frozen:
                self._frozen[name] = tower.eval().requires_grad_(False)
            else:
                self.add_module(name, tower.requires_grad_(True))
        if adapters:
            self.lora = nn.ModuleDict({name: leaves.requires_grad_(True) for name, leaves in adapters.items()})
        self.train()  # `from_pretrained` gives towers in evaluation mode, and adapters lie in towers that are frozen

    def part(self, name: str) -> nn.Module | None:
        """A tower by name, frozen or trained; None when the recipe has none."""
        return self._frozen[name] if name in self._frozen else self._modules.get(name)

    def frozen_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """The unregistered towers, by name."""
        yield from self._frozen.items()

    def frozen_counts(self) -> dict[str, int]:
        """Parameters that are not trained, by part."""
        return {
            name: sum(parameter.numel() for parameter in tower.parameters() if not parameter.requires_grad)
            for name, tower in self._frozen.items()
        }

    def place_frozen(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast the frozen towers; the engine does it for the registered parts."""
        for tower in self._frozen.values():
            too_narrow = isinstance(tower, T5AnswerTower) and dtype == torch.float16
            tower.to(device=device, dtype=t5_dtype(device) if too_narrow else dtype)

    @property
    def trains_t5(self) -> bool:
        """Whether a part of T5 is trained, which fp16 is too narrow for."""
        trained = "answer" in self._modules or "answer" in self.adapters
        return trained and isinstance(self.part("answer"), T5AnswerTower)

    @property
    def is_guided(self) -> bool:
        """Whether the fusion sees other tokens for each question of an image."""
        return self._guidance is not None

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """LoRA's leaf modules by the part that they adapt."""
        return dict(self.lora.items()) if "lora" in self._modules else {}

    def forward(self, batch: Batch) -> StepOutput:
        """The training loss of a micro-batch."""
        fused, batch = self._see(batch)
        loss, sums = fused.new_zeros((), dtype=torch.float32), self._no_sums(fused)
        if self.part("answer") is not None:
            states = self.part("answer").read(fused, batch)
            summed = self._answer_sums(states, batch, sums)
            loss = loss + self._losses.answer * summed
        if self.part("match") is not None:
            summed = self._match_sums(fused, batch, sums)
            loss = loss + self._losses.itm * summed
        return StepOutput(loss * batch.loss_scale, _stack(sums))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> EvaluationOutput:
        """The same sums without a graph, and the answers as the model generates them."""
        (fused, batch), answer_ids = self._see(batch), None
        sums = self._no_sums(fused)
        if self.part("answer") is not None:
            tower = self.part("answer")
            states = tower.read(fused, batch)
            self._answer_sums(states, batch, sums)
            answer_ids = tower.generate(states, batch, self._codec, self._max_answer_tokens)
        if self.part("match") is not None:
            self._match_sums(fused, batch, sums)
        return EvaluationOutput(_stack(sums), answer_ids)

    @torch.no_grad()
    def generate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Generated token ids (Q, T), and the probability (Q,) of each whole answer, its end token included."""
        fused, batch = self._see(batch)
        tower, codec = self.part("answer"), self._codec
        states = tower.read(fused, batch)
        ids = tower.generate(states, batch, codec, self._max_answer_tokens)
        ended = (ids == codec.end_id).long()
        labels = ids.masked_fill(ended.cumsum(dim=1) > ended, IGNORED_LABEL)  # what follows the end is no answer
        inputs = torch.cat([torch.full_like(ids[:, :1], codec.start_id), ids[:, :-1]], dim=1)
        mean = tower.losses(states, batch._replace(answer_ids=inputs, answer_labels=labels))
        return ids, (-mean * (labels != IGNORED_LABEL).sum(dim=1)).exp()

    def fuse(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 pixels to (B, N, D) fused tokens, once per image; not for a stream that is guided."""
        return self.fusion(self.image_tokens(pixels), self.feature_map(pixels))

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 pixels to (B, N, D) tokens of the first vision tower."""
        vision = self.part("vision")
        with self._no_grad_if_frozen("vision"):
            dtype = vision.embeddings.patch_embedding.weight.dtype
            inputs = blip_pixels(pixels, vision.config.image_size, dtype)
            return encode_image(vision, inputs, checkpointing=self._checkpointing)

    def _see(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Fused tokens, and the batch whose rows say which of them they read."""
        if self._guidance is None:
            return self.fuse(batch.pixels), batch
        return self._fuse_for_each_question(batch), batch.each_question_alone()

    def _fuse_for_each_question(self, batch: Batch) -> Tensor:
        """(Q, N, D) fused tokens: the second stream is weighed by the mask that a question's heatmap leads to."""
        tokens, maps = self.image_tokens(batch.pixels), self.feature_map(batch.pixels)
        grouping = Grouping.of(batch.question_image, num_images=len(maps), rows_per_image=batch.questions_per_image)
        stream, config = self.part("second_stream"), self._guidance
        found = look(
            self.part("match"),
            batch.question_ids,
            batch.question_mask,
            tokens,
            grouping,
            segmenter=stream.segmenter,
            embeddings=maps,
            config=config,
            num_tokens=batch.tokens_in_questions,
        )
        weighed = stream.weigh(maps, batch.question_image, found, config.blend)
        return self.fusion(tokens[batch.question_image], weighed)

    def feature_map(self, pixels: Tensor) -> Tensor | None:
        """(B, 3, S, S) uint8 pixels to the second stream's map (B, C, h, w); None for a single stream."""
        second_stream = self.part("second_stream")
        if second_stream is None:
            return None
        with self._no_grad_if_frozen("second_stream"):
            return second_stream(pixels)

    def _answer_sums(self, states: Tensor, batch: Batch, sums: dict[str, Tensor]) -> Tensor:
        losses = self.part("answer").losses(states, batch)
        summed = (losses * batch.answer_weight).sum()
        sums["answer_loss"], sums["answered"] = summed.detach(), batch.answer_weight.sum()
        return summed

    def _match_sums(self, fused: Tensor, batch: Batch, sums: dict[str, Tensor]) -> Tensor:
        tower = self.part("match")
        grouping = Grouping.of(batch.match_image, num_images=len(fused), rows_per_image=batch.pairs_per_image)
        options = {"num_tokens": batch.tokens_in_pairs, "checkpointing": self._checkpointing}
        states = encode_text(tower.text_encoder, batch.match_ids, batch.match_mask, fused, grouping, **options)
        logits = tower.itm_head(states[:, 0])
        labels, weight = batch.match_labels, batch.match_weight
        summed = (matching_loss(logits, labels) * weight).sum()
        counted, own = weight > 0, labels == 1
        sums["itm_loss"] = summed.detach()
        sums["matched"] = sums["itm_positives"] = (counted & own).sum().float()
        sums["itm_negatives"] = (counted & ~own).sum().float()
        sums["itm_correct"] = (counted & (logits.argmax(dim=-1) == labels)).sum().float()
        return summed

    def _no_grad_if_frozen(self, name: str) -> AbstractContextManager:
        return torch.no_grad() if name in self._frozen else nullcontext()

    @staticmethod
    def _no_sums(like: Tensor) -> dict[str, Tensor]:
        zero = like.new_zeros((), dtype=torch.float32)
        return dict.fromkeys(SUM_NAMES, zero)


def _stack(sums: dict[str, Tensor]) -> Tensor:
    return torch.stack([sums[name] for name in SUM_NAMES])
