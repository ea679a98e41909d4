"""What a part of the loss is: it takes one reading of one block of text, and gives a loss summed over items.

Shapes: B images, N image tokens, R rows of text, L tokens of a row, I items, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import AnswersConfig, HeadKind, LossConfig
from model.parts import PARTS
from model.towers.reading import Reading
from shards.read.collate import Block, TextCodec
from shards.tasks.seam import Block as BlockOfTask


@dataclass(frozen=True, kw_only=True)
class PartContext:
    """What a part may be made of."""

    losses: LossConfig
    tower: nn.Module
    """The text tower that reads its block."""
    block: BlockOfTask
    codec: TextCodec | None
    """Of the answer tower; None without one."""
    max_answer_tokens: int
    answers: AnswersConfig
    classes: Sequence[str]
    """What a class head names, and the list that a ranking chooses from."""
    soft_labels: bool
    """Whether several classes may be right in part."""
    head: HeadKind


class Read(NamedTuple):
    """A block, and the reading of it that all parts of this block share."""

    block: Block
    reading: Callable[[], Reading]


class PartOutput(NamedTuple):
    """What a part gives for a micro-batch."""

    loss: Tensor
    """() float32, summed over items."""
    sums: tuple[Tensor, ...]
    """() float32 each, detached: by the part's `sums`."""


def weighed(
    outputs: Mapping[str, PartOutput], weights: Mapping[str, float], sum_names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """() the loss of parts together, and (len(sum_names),) what they add up to; 0 for what none of them sums."""
    loss = sum(weights[name] * output.loss for name, output in outputs.items())
    known = {
        name: value
        for part, output in outputs.items()
        for name, value in zip(PARTS[part].names, output.sums, strict=True)
    }
    return loss, torch.stack([known.get(name, loss.new_zeros(())).detach() for name in sum_names])


class Part(ABC):
    """One loss on one reading."""

    head: nn.Module | None = None
    """What is trained for this part alone; registered as `heads.<name>`."""

    @abstractmethod
    def forward(self, read: Read) -> PartOutput:
        """The loss of a micro-batch."""

    def predict(self, read: Read) -> Tensor | None:  # noqa: ARG002 - a part may predict nothing
        """What the model says instead of what it should have said: see the part."""
        return None
