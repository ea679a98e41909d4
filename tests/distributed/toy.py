"""A small objective with what makes ZeRO difficult: a frozen unregistered tower, checkpointing, ragged work."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16", "fp16")
WIDTH = 6
VISITS = 8
QUESTIONS = (1, 7, 2, 5, 1, 1, 3, 6)
"""Per visit of a step: the ranks have unequal numbers of questions."""


class ToyOutput(NamedTuple):
    """What the objective computes for one micro-batch."""

    loss: Tensor
    """Sum over questions x weight."""
    question_sum: Tensor


class ToyBatch(NamedTuple):
    """Questions of some visits, flattened; weight 0 marks padding."""

    features: Tensor
    targets: Tensor
    weights: Tensor
    scale: float


class Toy(nn.Module):
    """A trained adapter feeds a frozen tower; what comes out is normalised, transformed and scored per question.

    Args:
        dropout: of the trained block.
        low_rank: add a factor that starts at zero, as LoRA's does.
        unused: add a trainable layer that the loss never sees.
    """

    def __init__(self, *, seed: int, dropout: float = 0.0, low_rank: bool = False, unused: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        tower = nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, WIDTH)).requires_grad_(False)
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        self._tower = [tower.eval()]  # in a list: not registered
        self.adapter = nn.Linear(WIDTH, WIDTH)
        self.block = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(11, 1)
        if low_rank:
            self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        if unused:
            self.unused = nn.Linear(WIDTH, 3)
        generator.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
            if low_rank:
                self.up.weight.zero_()

    def forward(self, batch: ToyBatch) -> ToyOutput:
        dtype = self.adapter.weight.dtype
        tower = self._tower[0].to(dtype)
        features = batch.features.to(dtype)
        hidden = self.adapter(features)
        if hasattr(self, "up"):
            hidden = hidden + self.up(self.down(features))
        hidden = hidden + checkpoint(tower, hidden, use_reentrant=False)
        hidden = checkpoint(self.block, hidden, use_reentrant=False)
        errors = (self.head(hidden).squeeze(-1).float() - batch.targets) ** 2
        question_sum = (errors * batch.weights).sum()
        return ToyOutput(question_sum * batch.scale, question_sum.detach())


def step_batches(step: int, *, rank: int, world_size: int, micro_visits: int) -> list[ToyBatch]:
    """This rank's micro-batches of a step: the same questions in all, whatever the world size."""
    generator = torch.Generator().manual_seed(1000 + step)
    visits = [
        (torch.randn(count, WIDTH, generator=generator), torch.randn(count, generator=generator))
        for count in QUESTIONS[step % 3 :] + QUESTIONS[: step % 3]
    ]
    own = visits[rank * VISITS // world_size : (rank + 1) * VISITS // world_size]
    groups = [own[i : i + micro_visits] for i in range(0, len(own), micro_visits)]
    scale = world_size * len(groups) / sum(QUESTIONS)
    return [
        ToyBatch(
            torch.cat([f for f, _ in group]),
            torch.cat([t for _, t in group]),
            torch.ones(sum(len(t) for _, t in group)),
            scale,
        )
        for group in groups
    ]
