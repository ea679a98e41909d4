"""The tensors of a micro-batch for a vision-language model. Pure.

Shapes: S sequences of at most N tokens, each a prefix and the questions that share it; L learnt tokens of T answers;
W pages of the longest window; I items.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from shards.read.collate import to_device

PADDING, PREFIX = -1, 0
"""Segments that are no question; the questions of a sequence are 1, 2, ..."""


class Sequences(NamedTuple):
    """Token ids with what the model looks at beside them."""

    ids: Tensor
    """(S, N) int64"""
    segment: Tensor
    """(S, N) int64: PADDING, PREFIX, or the number of a question"""
    place: Tensor
    """(S, N) int64: of a token in its segment"""
    kinds: dict[str, Tensor]
    """(S, N) each: what the processor says of tokens, such as `mm_token_type_ids`; 0 outside of the prefix"""
    media: dict[str, Tensor]
    """What the processor makes of all images, under its own names"""


class Learnt(NamedTuple):
    """The tokens of answers, and where a model has to expect them."""

    at: Tensor
    """(L,) int64: places among the S x N states behind which each token comes"""
    token: Tensor
    """(L,) int64"""
    answer: Tensor
    """(L,) int64: number of the answer, ascending"""
    weight: Tensor
    """(T,) float32; 0 for padding and for answers that are not known"""
    lengths: Tensor
    """(T,) float32: tokens of each answer, its end included"""


class Asked(NamedTuple):
    """Questions without answers, to be answered."""

    sequences: Sequences
    """Without media where they are those of the sequences with answers."""
    at: Tensor
    """(I,) int64: places among the S x N states of the last token of each question, in the order of the items"""


class Windows(NamedTuple):
    """The pages that each question is asked of. A question is told by its answer: where it has several, by each."""

    page: Tensor
    """(S, N) int64: number of the page that an image token is part of, among those of its sequence; -1 at others"""
    at: Tensor
    """(T,) int64: places among the S x N states of the last token before each answer"""
    place: Tensor
    """(T, W) int64: of each page of its sequence in the question's whole window; -1 where there is no page"""
    shown: Tensor
    """(T,) int64: number of the page with the answer among those of its sequence"""
    weight: Tensor
    """(T,) float32; 0 for padding, and where that page is not known or not read"""


class VlmBatch(NamedTuple):
    """One micro-batch."""

    sequences: Sequences
    learnt: Learnt
    windows: Windows | None
    """None where nobody asks for pages."""
    asked: Asked | None
    """None in training."""
    loss_scale: Tensor
    """() float32: what the sums over items are multiplied with"""

    def to(self, device: torch.device) -> Self:
        """The batch on a device; from pinned memory the copies do not block."""
        return to_device(self, device)

    def with_images_exchanged(self, num_samples: int, before: object = None) -> None:  # noqa: ARG002 - they cannot be
        """Images of their own size stand in a sequence as tokens of their own number: they cannot change places."""
        return
