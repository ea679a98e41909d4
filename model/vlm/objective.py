"""The objective over a frozen vision-language model: images once, questions behind them, a loss on answers.

The model hangs on it unregistered; the leaves of its adapters are what the engine trains.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.objective import EvaluationOutput, FrozenApart, StepOutput
from model.vlm.batch import Learnt, Sequences, VlmBatch
from model.vlm.forward import Forward
from model.vlm.generation import Written, write_alone, write_grouped

NAME = "vlm"
"""Of the frozen model, and of its adapters."""


class AnswerSums(NamedTuple):
    """What the answers of a micro-batch add up to."""

    loss: Tensor
    """() float32"""
    weight: Tensor
    """() float32"""


class VlmObjective(FrozenApart):
    """Cross-entropy of answers, each the mean over its tokens with the end of turn, summed with their weights.

    Args:
        model: frozen here, and kept unregistered.
        leaves: trained leaf modules of its adapters.
        sum_names: see `Objective.sum_names`; those of answers are filled.
        weight: of the loss.
        tokens: how the cross-entropies of an answer's tokens are put together.
        shared: whether sequences hold several questions that do not see each other.
        max_answer_tokens: at which writing stops.
        end_ids: what ends an answer.
        too_wide_for_fp16: see `Objective.too_wide_for_fp16`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        leaves: nn.Module,
        *,
        sum_names: Sequence[str],
        weight: float,
        tokens: str = "mean",
        shared: bool,
        max_answer_tokens: int,
        end_ids: tuple[int, ...],
        gradient_checkpointing: bool = False,
        too_wide_for_fp16: str | None = None,
    ) -> None:
        super().__init__()
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._frozen[NAME] = model
        self.lora = nn.ModuleDict({NAME: leaves.requires_grad_(True)})
        self.sum_names, self.shared = tuple(sum_names), shared
        self.too_wide_for_fp16 = too_wide_for_fp16
        self._weight, self._tokens = weight, tokens
        self._max_answer_tokens, self._end_ids = max_answer_tokens, end_ids
        if gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
            for module in model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True  # it looks at this alone; dropout inside of it stays off
        self.train()

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model, with adapters in it."""
        return self._frozen[NAME]

    def place_frozen(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast the model; its adapters follow the engine."""
        if not getattr(self.model, "is_quantized", False):  # that is on its device, and may not leave it
            self.model.to(device=device)
        for parameter in self.model.parameters():
            # Not buffers: rotary frequencies are fp32 in every checkpoint, and positions would be wrong in bf16. Packed
            # weights are no floating points.
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        if device.type == "cuda" and self.shared and self._forward.has_blocks:
            self._forward.attend("flex_attention")

    @property
    def attends_by_blocks(self) -> bool:
        """Whether the language model attends by FlexAttention."""
        return self._forward.attends_by_blocks

    def attend_densely(self) -> None:
        """Let the language model attend as it was loaded."""
        self._forward.attend("sdpa")

    def forward(self, batch: VlmBatch) -> StepOutput:
        """The training loss of a micro-batch."""
        found = self._answers(batch)
        return StepOutput(self._weight * found.loss * batch.loss_scale, self._sums(found))

    @torch.no_grad()
    def evaluate(self, batch: VlmBatch) -> EvaluationOutput:
        """The same sums without a graph; `answer`: token ids (I, T) of what is written, in the order of the items."""
        sums = self._sums(self._answers(batch))
        return EvaluationOutput(sums, {"answer": self.write(batch).ids})

    @torch.no_grad()
    def write(self, batch: VlmBatch) -> Written:
        """What the model answers, greedily."""
        assert batch.asked is not None, "collated to be answered"
        asked = batch.asked
        if not asked.sequences.media:
            asked = asked._replace(sequences=asked.sequences._replace(media=batch.sequences.media))
        write = write_grouped if self.shared else write_alone
        return write(self._forward, asked, max_tokens=self._max_answer_tokens, end_ids=self._end_ids)

    def answer_logits(self, sequences: Sequences, at: Tensor) -> Tensor:
        """(L, V) float32: what is expected behind L of the S x N states."""
        return self._forward.logits(self._forward.states(sequences).flatten(0, 1)[at])

    @property
    def _forward(self) -> Forward:
        return Forward(self.model, self.shared)

    def _answers(self, batch: VlmBatch) -> AnswerSums:
        learnt = batch.learnt
        logits = self.answer_logits(batch.sequences, learnt.at)
        losses = _by_answer(F.cross_entropy(logits, learnt.token, reduction="none"), learnt)
        if self._tokens == "mean":
            losses = losses / learnt.lengths
        return AnswerSums((losses * learnt.weight).sum(), learnt.weight.sum())

    def _sums(self, found: AnswerSums) -> Tensor:
        known = {"answer_loss": found.loss.detach(), "answered": found.weight}
        return torch.stack([known.get(name, found.weight.new_zeros(())) for name in self.sum_names])


def _by_answer(losses: Tensor, learnt: Learnt) -> Tensor:
    """(L,) to (T,): the sum over the tokens of each answer."""
    return losses.new_zeros(len(learnt.weight)).index_add(0, learnt.answer, losses)
