"""The tensors of a micro-batch of questions that each read the words of some pages. Pure.

Shapes: Q questions; E readings, one for each question and each of its pages, of at most L tokens; W pages of the
longest window of this micro-batch.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from shards.read.collate import Targets, to_device

GRID = 1000
"""A page is so many units wide and high."""


class Readings(NamedTuple):
    """What the encoder reads: page tokens, question, words."""

    ids: Tensor
    """(E, L) int64"""
    mask: Tensor
    """(E, L) bool, True at tokens"""
    boxes: Tensor
    """(E, L, 4) int64: left, top, right, bottom in thousandths of the page; of page tokens and question the whole page,
    of the end 0"""
    question: Tensor
    """(E,) int64: whose reading it is"""
    column: Tensor
    """(E,) int64: number of the page among those that are read for its question"""
    place: Tensor
    """(E,) int64: of the page in the whole window of its question"""


class ReaderBatch(NamedTuple):
    """One micro-batch."""

    readings: Readings
    mask: Tensor
    """(Q, W) bool: which columns have a page"""
    targets: Targets
    """Answers, each behind one of the Q questions."""
    page: Tensor
    """(Q,) int64: place of the page with the answer"""
    page_weight: Tensor
    """(Q,) float32; 0 for padding and where it is not known"""
    loss_scale: Tensor
    """() float32: what the sums over items are multiplied with"""

    def to(self, device: torch.device) -> Self:
        """The batch on a device; from pinned memory the copies do not block."""
        return to_device(self, device)

    def with_images_exchanged(self, num_samples: int, before: object = None) -> None:  # noqa: ARG002 - they cannot be
        """Documents have different numbers of pages, and windows of their own: they cannot change places."""
        return
