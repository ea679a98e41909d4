"""The objective of page retrieval: a question is brought to the page with its answer, among the pages of its document.

Its registered children are the towers that are trained whole, the leaves of adapters, and the temperature where the
loss has one; a frozen tower hangs on it unregistered.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from model.objective import EvaluationOutput, FrozenApart, StepOutput
from model.parts.seam import PartOutput, weighed
from model.retrieval.batch import RetrievalBatch
from model.retrieval.losses import contrastive, ranking, triplet
from model.retrieval.towers import Temperature, TextTower, VisionTower

Loss = Literal["contrastive", "triplet"]
PART = "retrieve"
"""Of the loss, and of what is predicted."""


class Towers(NamedTuple):
    """Both towers."""

    text: TextTower
    vision: VisionTower


class RetrievalObjective(FrozenApart):
    """A loss on the cosines of questions and pages, each summed with its weight.

    Args:
        towers: built; those named in `freeze` are frozen here and kept unregistered.
        freeze: towers that are not trained, but for their adapters.
        adapters: trained leaf modules inside of frozen towers, by tower.
        temperature: None for a loss without one.
        sum_names: see `Objective.sum_names`; those of the part are filled.
        weight: of the loss.
    """

    too_wide_for_fp16 = None

    def __init__(
        self,
        towers: Towers,
        *,
        freeze: Collection[str],
        adapters: Mapping[str, nn.Module],
        temperature: Temperature | None,
        loss: Loss,
        margin: float,
        sum_names: Sequence[str],
        weight: float,
    ) -> None:
        super().__init__()
        for name, tower in towers._asdict().items():
            if name in freeze:
                self._frozen[name] = _frozen(tower, is_adapted=name in adapters)
            else:
                self.add_module(name, tower)
        if adapters:
            self.lora = nn.ModuleDict({name: leaves.requires_grad_(True) for name, leaves in adapters.items()})
        self.temperature = temperature
        self.sum_names = tuple(sum_names)
        self._loss, self._margin, self._weight = loss, margin, weight
        self.train()

    def tower(self, name: Literal["text", "vision"]) -> nn.Module:
        """A tower, trained or frozen."""
        return self._frozen[name] if name in self._frozen else self.get_submodule(name)

    def forward(self, batch: RetrievalBatch) -> StepOutput:
        """The training loss of a micro-batch."""
        loss, sums = self._summed(self.similarity(batch), batch)
        return StepOutput(loss * batch.loss_scale, sums)

    @torch.no_grad()
    def evaluate(self, batch: RetrievalBatch) -> EvaluationOutput:
        """The same sums without a graph; `retrieve`: (Q, W) the places of the pages of each window, best first."""
        similarity = self.similarity(batch)
        _, sums = self._summed(similarity, batch)
        return EvaluationOutput(sums, {PART: ranking(similarity, batch.asked.window)})

    def similarity(self, batch: RetrievalBatch) -> Tensor:
        """(Q, P) float32: the cosine of every question and every page."""
        return self._read("text", batch.texts) @ self._read("vision", batch.pages).T

    def _read(self, name: Literal["text", "vision"], given: object) -> Tensor:
        is_constant = name in self._frozen and name not in self.adapters
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_constant):
            return self.tower(name)(given)

    def _summed(self, similarity: Tensor, batch: RetrievalBatch) -> tuple[Tensor, Tensor]:
        if self._loss == "contrastive":
            assert self.temperature is not None, "this loss has one"
            losses = contrastive(similarity, batch.asked, self.temperature())
        else:
            losses = triplet(similarity, batch.asked, self._margin)
        summed, weight = (losses * batch.asked.weight).sum(), batch.asked.weight.sum()
        return weighed({PART: PartOutput(summed, (summed, weight))}, {PART: self._weight}, self.sum_names)


def _frozen(tower: nn.Module, *, is_adapted: bool) -> nn.Module:
    """A tower in evaluation mode; under adapters its checkpointing layers, which look at their mode, stay at work."""
    tower.eval()
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    for module in tower.modules():
        if is_adapted and isinstance(module, GradientCheckpointingLayer):
            module.training = True
    return tower
