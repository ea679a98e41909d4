"""What text towers have in common: they read rows of text, each over the tokens of its image.

Shapes: B images, N image tokens, R rows of text, L tokens of a row, D width.
"""

from typing import NamedTuple

from torch import Tensor
from transformers import BlipTextModel

from model.rows import Grouping
from model.towers.blip import encode_text
from shards.read.collate import Block


class Reading(NamedTuple):
    """What a text tower makes of rows of text and the images that they read."""

    states: Tensor
    """(R, ., D): what a decoder reads."""
    pooled: Tensor | None
    """(R, D): the state that stands for the whole row; None where a tower has none."""


def read_with_blip(encoder: BlipTextModel, fused: Tensor, block: Block, *, checkpointing: bool) -> Reading:
    """BLIP's image-grounded text encoder: the rows of an image share the keys and values of its tokens.

    Args:
        fused: (B, N, D) image tokens.
        checkpointing: recompute each layer in the backward pass.
    """
    grouping = Grouping.of(block.image, num_images=len(fused), rows_per_image=block.rows_per_image)
    states = encode_text(
        encoder, block.ids, block.mask, fused, grouping, num_tokens=block.tokens, checkpointing=checkpointing
    )
    return Reading(states, states[:, 0])
