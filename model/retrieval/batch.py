"""The tensors of a micro-batch for page retrieval. Pure.

Shapes: P pages of all documents, Q questions of at most L tokens, W pages at most that a question is compared with.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from shards.read.collate import to_device

NONE = -1
"""Stands in a window for a page that is not there."""


class Texts(NamedTuple):
    """Questions as a text tower reads them."""

    ids: Tensor
    """(Q, L) int64"""
    mask: Tensor | None
    """(Q, L) int64, 1 at tokens; None for a tower that was trained to read its padding"""


class Asked(NamedTuple):
    """Which pages a question is compared with, and which of them is the right one."""

    window: Tensor
    """(Q, W) int64: numbers of pages, in the order of the question's window, then NONE"""
    answer: Tensor
    """(Q,) int64: place in the window of the page with the answer; 0 where it is not known"""
    weight: Tensor
    """(Q,) float32; 0 for padding and where the page is not known"""


class RetrievalBatch(NamedTuple):
    """One micro-batch."""

    pages: Tensor
    """(P, 3, H, W) float32: as the checkpoint's image processor makes them"""
    texts: Texts
    asked: Asked
    loss_scale: Tensor
    """() float32: what the sums over items are multiplied with"""

    def to(self, device: torch.device) -> Self:
        """The batch on a device; from pinned memory the copies do not block."""
        return to_device(self, device)

    def with_images_exchanged(self, num_samples: int, before: object = None) -> None:  # noqa: ARG002 - they cannot be
        """Documents have pages of their own number: they cannot change places."""
        return
