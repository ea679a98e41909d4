"""Classes: a head names what a text and its images come to.

Shapes: R rows of text, I items, D width of a text tower's states, C classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HeadKind
from model.parts.seam import Part, PartContext, PartOutput, Read
from model.towers.answer_towers import T5AnswerTower
from shards.errors import ConfigError
from shards.read.collate import Block


class ClassHead(nn.Module):
    """(I, rows_per_item * D) to (I, C) logits.

    `lxmert`: Linear to 2 D, GELU, LayerNorm, Linear (Tan & Bansal 2019, `run/` heads for VQA, GQA and NLVR2).
    `albef`: Linear to D, ReLU, Linear (Li et al. 2021, its `cls_head` for SNLI-VE and NLVR2).
    """

    def __init__(self, kind: HeadKind, *, width: int, rows_per_item: int, num_classes: int) -> None:
        super().__init__()
        joined = width * rows_per_item
        if kind == "lxmert":
            inside = 2 * width
            layers = [nn.Linear(joined, inside), nn.GELU(), nn.LayerNorm(inside, eps=1e-12)]
        else:
            inside = width
            layers = [nn.Linear(joined, inside), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(inside, num_classes))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)


class ClassPart(Part):
    """One class of several: cross-entropy. Several classes that are right in part: the binary cross-entropies of all
    classes, added up (LXMERT's mean times the number of classes).

    Args:
        soft: whether labels are scores of all classes.
    """

    def __init__(self, head: ClassHead, *, soft: bool) -> None:
        self.head, self._soft = head, soft

    def forward(self, read: Read) -> PartOutput:
        logits, labels = self.predict(read).float(), read.block.labels
        if self._soft:
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1)
        else:
            losses = F.cross_entropy(logits, labels, reduction="none")
        weight = read.block.weight
        summed = (losses * weight).sum()
        return PartOutput(summed, (summed.detach(), weight.sum()))

    def predict(self, read: Read) -> Tensor:
        """(I, C) logits."""
        return self.head(joined_rows(read.reading().pooled, read.block))


def joined_rows(pooled: Tensor, block: Block) -> Tensor:
    """(R, D) states of rows to (I, rows_per_item * D): those of an item side by side, in the order of its images."""
    if block.rows_per_item == 1:
        return pooled
    # Rows are sorted by image, and the images of a sample stand in their order.
    order = block.item.argsort(stable=True)
    return pooled[order].view(-1, block.rows_per_item * pooled.shape[-1])


def make(context: PartContext) -> ClassPart:
    """The part of a recipe.

    Raises:
        ConfigError: the tower has no state that stands for a whole text.
    """
    if isinstance(context.tower, T5AnswerTower):
        raise ConfigError(
            "losses.classify: T5 has no state that stands for a whole text; name a BLIP checkpoint in model.answer"
        )
    head = ClassHead(
        context.head,
        width=context.tower.state_width,
        rows_per_item=context.block.rows_per_item,
        num_classes=len(context.classes),
    )
    return ClassPart(head, soft=context.soft_labels)
