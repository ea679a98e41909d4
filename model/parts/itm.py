"""Image-text matching: does a text belong to the image (Li et al. 2021, ALBEF, section 3.2)?"""

import torch
from torch import Tensor

from model.losses import matching_loss
from model.parts.seam import Part, PartContext, PartOutput, Read
from model.towers.match_tower import MatchTower


class MatchingPart(Part):
    """Two-way cross-entropy of every row, each weighted; the head is the matching tower's own."""

    def __init__(self, tower: MatchTower) -> None:
        self.tower = tower

    def forward(self, read: Read) -> PartOutput:
        logits = self.tower.itm_head(read.reading().pooled)
        labels, weight = read.block.labels, read.block.weight
        summed = (matching_loss(logits, labels) * weight).sum()
        counted, own = weight > 0, labels == 1
        positives = (counted & own).sum().float()
        negatives = (counted & ~own).sum().float()
        correct = (counted & (logits.argmax(dim=-1) == labels)).sum().float()
        return PartOutput(summed, (summed.detach(), positives, positives, negatives, correct))

    def predict(self, read: Read) -> Tensor:
        """(R, 2): the probability that text and image belong together, and 1 where they do, 0 where they do not, -1
        where a row counts for nothing."""
        probability = self.tower.itm_head(read.reading().pooled).float().softmax(-1)[:, 1]
        truth = torch.where(read.block.weight > 0, read.block.labels, -1)
        return torch.stack([probability, truth.to(probability.dtype)], dim=-1)


def make(context: PartContext) -> MatchingPart:
    """The part of a recipe."""
    return MatchingPart(context.tower)
