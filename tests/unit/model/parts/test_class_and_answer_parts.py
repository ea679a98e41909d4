"""The losses of classes and of answers, worked out from numbers."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from model.parts.answer import AnswerPart
from model.parts.classify import ClassHead, ClassPart, joined_rows
from model.parts.seam import PartOutput, Read
from model.towers.reading import Reading
from shards.read.collate import IGNORED_LABEL, Block, Targets

INSIDE = {"lxmert": nn.GELU, "albef": nn.ReLU}


def block(
    items: list[int], *, image: list[int] | None = None, weight: Tensor, labels: Tensor, targets: Targets | None = None
) -> Block:
    """Rows of two tokens of these items."""
    mask = torch.ones(len(items), 2, dtype=torch.bool)
    item = torch.tensor(items)
    rows = torch.tensor(items if image is None else image)
    counts = {"rows_per_image": int(rows.bincount().max()), "rows_per_item": int(item.bincount().max())}
    tokens = int(mask.sum())
    return Block(mask.long(), mask, rows, item, weight, labels, targets, **counts, tokens=tokens)


def read(block: Block, pooled: Tensor) -> Read:
    return Read(block, lambda: Reading(pooled[:, None], pooled))


def classified(logits: Tensor, labels: Tensor, weight: Tensor, *, soft: bool) -> PartOutput:
    """What the part gives for items whose head gives these logits."""
    part = ClassPart(nn.Identity(), soft=soft)  # type: ignore[arg-type]
    return part.forward(read(block(list(range(len(logits))), weight=weight, labels=labels), logits))


def test_one_class_of_several_is_a_weighted_cross_entropy():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [5.0, 1.0, 1.0]])
    output = classified(logits, torch.tensor([0, 2, 1]), torch.tensor([1.0, 0.5, 0.0]), soft=False)
    first = math.log(math.exp(2) + 1 + math.exp(1)) - 2
    assert float(output.loss) == pytest.approx(first + 0.5 * math.log(3), rel=1e-6)
    assert [float(value) for value in output.sums] == pytest.approx([float(output.loss), 1.5])


def test_soft_labels_are_lxmerts_mean_times_the_number_of_classes():
    logits = torch.tensor([[0.3, -1.2, 2.0, 0.0], [-0.5, 0.7, 0.1, -3.0]])
    labels = torch.tensor([[0.3, 0.0, 1.0, 0.0], [0.0, 0.9, 0.6, 0.0]])
    output = classified(logits, labels, torch.ones(2), soft=True)
    original = nn.BCEWithLogitsLoss()(logits, labels) * logits.shape[1]  # of a batch: a mean over its items
    assert float(output.loss) / 2 == pytest.approx(float(original), rel=1e-6)
    by_hand = sum(
        math.log1p(math.exp(x)) - y * x
        for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    )
    assert float(output.loss) == pytest.approx(by_hand, rel=1e-6)
    assert float(output.sums[1]) == 2.0


def test_soft_labels_weigh_as_their_items():
    logits, labels = torch.tensor([[0.3, -1.2], [2.0, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, 0.6]])
    one, other = (classified(logits[[n]], labels[[n]], torch.ones(1), soft=True).loss for n in range(2))
    output = classified(logits, labels, torch.tensor([0.5, 0.0]), soft=True)
    assert float(output.loss) == pytest.approx(0.5 * float(one), rel=1e-6)
    assert float(other) > 0
    assert float(output.sums[1]) == 0.5


def test_the_states_of_an_item_stand_side_by_side_in_the_order_of_its_images():
    """Two samples of two images: items 0 and 1 are about the first, item 2 is about the second."""
    pooled = torch.tensor([[0.0], [1.0], [10.0], [11.0], [2.0], [12.0]])
    items, image = [0, 1, 0, 1, 2, 2], [0, 0, 1, 1, 2, 3]
    made = block(items, image=image, weight=torch.ones(3), labels=torch.zeros(3, dtype=torch.int64))
    assert joined_rows(pooled, made).tolist() == [[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]]


@pytest.mark.parametrize("rows_per_item", [1, 2])
@pytest.mark.parametrize("kind", INSIDE)
def test_heads_are_those_of_the_papers(kind: str, rows_per_item: int):
    head = ClassHead(kind, width=6, rows_per_item=rows_per_item, num_classes=5)  # type: ignore[arg-type]
    first, inside, *rest, last = head.layers
    width = 12 if kind == "lxmert" else 6
    assert (first.in_features, first.out_features) == (6 * rows_per_item, width)
    assert type(inside) is INSIDE[kind]
    assert [type(layer) for layer in rest] == ([nn.LayerNorm] if kind == "lxmert" else [])
    assert (last.in_features, last.out_features) == (width, 5)
    pooled = torch.randn(3, 6 * rows_per_item)
    hidden = nn.functional.linear(pooled, first.weight, first.bias)
    hidden = nn.functional.gelu(hidden) if kind == "lxmert" else hidden.clamp(min=0)
    if kind == "lxmert":
        hidden = nn.functional.layer_norm(hidden, (width,), eps=1e-12)
    torch.testing.assert_close(head(pooled), nn.functional.linear(hidden, last.weight, last.bias))


class _Tower(NamedTuple):
    """Gives each target the mean cross-entropy that it was told."""

    means: Tensor

    def losses(self, states: Tensor, mask: Tensor, targets: Targets) -> Tensor:  # noqa: ARG002
        return self.means


@pytest.mark.parametrize(("tokens", "counts"), [("mean", (1, 1, 1)), ("sum", (3, 1, 2))])
def test_tokens_of_an_answer_are_averaged_or_added_up_and_targets_weighed(tokens: str, counts: tuple[int, ...]):
    labels = torch.tensor([[7, 8, 3], [3, IGNORED_LABEL, IGNORED_LABEL], [9, 3, IGNORED_LABEL]])
    weight, means = torch.tensor([0.7, 0.3, 0.5]), torch.tensor([2.0, 5.0, 1.0])
    targets = Targets(labels.clamp(min=0), labels, torch.tensor([0, 0, 1]), weight, one_per_row=False)
    part = AnswerPart(_Tower(means), None, 4, tokens=tokens)  # type: ignore[arg-type]
    made = block([0, 1], weight=torch.ones(2), labels=torch.zeros(2, dtype=torch.int64), targets=targets)
    output = part.forward(read(made, torch.zeros(2, 6)))
    expected = sum(w * m * n for w, m, n in zip(weight.tolist(), means.tolist(), counts, strict=True))
    assert float(output.loss) == pytest.approx(expected, rel=1e-6)
    assert float(output.sums[1]) == pytest.approx(1.5), "of what a validation's loss is the mean"
