"""The objective over a frozen vision-language model: images once, questions behind them, a loss on answers, and one on
the page that shows them.

The model hangs on it unregistered; the leaves of its adapters, and a head over pages, are what the engine trains.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.checkpointing import recompute_layers_in
from model.objective import EvaluationOutput, FrozenApart, StepOutput
from model.parts.page import page_loss, ranking
from model.parts.seam import PartOutput, weighed
from model.vlm.batch import Learnt, Sequences, VlmBatch
from model.vlm.forward import Forward
from model.vlm.generation import Written, write_alone, write_grouped
from model.vlm.pages import PageFinder, in_window

NAME = "vlm"
"""Of the frozen model, and of its adapters."""


class VlmObjective(FrozenApart):
    """Cross-entropy of answers, each the mean over its tokens with the end of turn, and of pages, summed with their
    weights.

    Args:
        model: frozen here, and kept unregistered.
        leaves: trained leaf modules of its adapters.
        page_head: tells the page with the answer; None without a loss on pages.
        sum_names: see `Objective.sum_names`; those of the two parts are filled.
        weights: of the parts.
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
        page_head: PageFinder | None,
        sum_names: Sequence[str],
        weights: Mapping[str, float],
        tokens: str = "mean",
        shared: bool,
        max_answer_tokens: int,
        end_ids: tuple[int, ...],
        gradient_checkpointing: float = 0.0,
        too_wide_for_fp16: str | None = None,
    ) -> None:
        super().__init__()
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._frozen[NAME] = model
        self.lora = nn.ModuleDict({NAME: leaves.requires_grad_(True)})
        if page_head is not None:
            self.heads = nn.ModuleDict({"page": page_head})
        self.sum_names, self.shared = tuple(sum_names), shared
        self.too_wide_for_fp16 = too_wide_for_fp16
        self._weights, self._tokens = dict(weights), tokens
        self._max_answer_tokens, self._end_ids = max_answer_tokens, end_ids
        recompute_layers_in(model, gradient_checkpointing)
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
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
        loss, sums = self._losses(batch, self._forward.states(batch.sequences))
        return StepOutput(loss * batch.loss_scale, sums)

    @torch.no_grad()
    def evaluate(self, batch: VlmBatch) -> EvaluationOutput:
        """The same sums without a graph; in the order of the items `answer`: token ids (I, T) of what is written, and
        `page`: (I, W) the places of the pages that were read, the most likely first, then -1."""
        states = self._forward.states(batch.sequences)
        _, sums = self._losses(batch, states)
        predictions = {"answer": self.write(batch).ids}
        if self.has_page_head:
            predictions["page"] = self._ranked(batch, states)
        return EvaluationOutput(sums, predictions)

    @torch.no_grad()
    def pages(self, batch: VlmBatch) -> Tensor:
        """(I, W) int64: as `evaluate` ranks them."""
        return self._ranked(batch, self._forward.states(batch.sequences))

    @property
    def has_page_head(self) -> bool:
        """Whether it tells the page with the answer."""
        return hasattr(self, "heads")

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

    def _losses(self, batch: VlmBatch, states: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss, and the sums by `sum_names`."""
        outputs = {"answer": self._answers(batch.learnt, states)}
        if self.has_page_head:
            assert batch.windows is not None, "collated to find pages"
            windows = batch.windows
            outputs["page"] = page_loss(self.heads["page"](states, windows), windows.shown, windows.weight)
        return weighed(outputs, self._weights, self.sum_names)

    def _answers(self, learnt: Learnt, states: Tensor) -> PartOutput:
        logits = self._forward.logits(states.flatten(0, 1)[learnt.at])
        losses = _by_answer(F.cross_entropy(logits, learnt.token, reduction="none"), learnt)
        if self._tokens == "mean":
            losses = losses / learnt.lengths
        summed = (losses * learnt.weight).sum()
        return PartOutput(summed, (summed.detach(), learnt.weight.sum()))

    def _ranked(self, batch: VlmBatch, states: Tensor) -> Tensor:
        assert batch.windows is not None, "collated to find pages"
        return in_window(ranking(self.heads["page"](states, batch.windows)), batch.windows.place)


def _by_answer(losses: Tensor, learnt: Learnt) -> Tensor:
    """(L,) to (T,): the sum over the tokens of each answer."""
    return losses.new_zeros(len(learnt.weight)).index_add(0, learnt.answer, losses)
