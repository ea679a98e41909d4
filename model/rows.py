"""Rows of text laid out for what reads them: a table of rows per image, and a list of tokens without padding.

Shapes: B images, R rows of text (questions, or question-answer pairs), L tokens of a row, W tokens in all, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Grouping(NamedTuple):
    """Which image each row of text belongs to, as places in a (B, rows per image) table."""

    slots: Tensor
    """(R,) int64: image * rows_per_image + rank of the row among its image's rows."""
    num_images: int
    rows_per_image: int

    @classmethod
    def of(cls, image: Tensor, *, num_images: int, rows_per_image: int) -> "Grouping":
        """The grouping of rows sorted by image.

        Args:
            image: (R,) int64, ascending.
            rows_per_image: the most rows that any image has; given, since reading it from a GPU would wait for it.
        """
        rank = torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)
        return cls(image * rows_per_image + rank, num_images, rows_per_image)

    def pack(self, rows: Tensor) -> Tensor:
        """(R, L, D) to (B, rows_per_image * L, D); places without a row are 0."""
        length, width = rows.shape[1:]
        table = rows.new_zeros(self.num_images * self.rows_per_image, length, width)
        return table.index_copy(0, self.slots, rows).view(self.num_images, -1, width)

    def unpack(self, packed: Tensor, length: int) -> Tensor:
        """The inverse of `pack`: (B, rows_per_image * L, D) to (R, L, D)."""
        return packed.reshape(self.num_images * self.rows_per_image, length, -1).index_select(0, self.slots)


class Words(NamedTuple):
    """The tokens of rows of text without their padding, which is about half of what GQA's questions are padded to."""

    places: Tensor
    """(W,) int64: row * L + position of every token"""
    rows: int
    length: int

    @classmethod
    def of(cls, mask: Tensor, num_tokens: int) -> "Words":
        """The tokens that a mask shows.

        Args:
            mask: (R, L) bool.
            num_tokens: how many it shows; given, since reading it from a GPU would wait for it. With a larger number
                padding is computed as well, which changes nothing.
        """
        places = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:num_tokens]
        return cls(places, *mask.shape)

    def pack(self, padded: Tensor) -> Tensor:
        """(R, L, D) to (W, D)."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def unpack(self, words: Tensor) -> Tensor:
        """(W, D) to (R, L, D); padding is 0."""
        padded = words.new_zeros(self.rows * self.length, words.shape[-1])
        return padded.index_copy(0, self.places, words).view(self.rows, self.length, -1)
