"""What text towers have in common: they read rows of text, each over the tokens of its image.

Shapes: B images, N image tokens, R rows of text, L tokens of a row, D width.
"""

from typing import NamedTuple

from torch import Tensor, nn

from model.rows import Grouping
from model.towers.blip import encode_text
from shards.read.collate import Block


class Reading(NamedTuple):
    """What a text tower makes of rows of text and the images that they read."""

    states: Tensor
    """(R, ., D): what a decoder reads."""
    pooled: Tensor | None
    """(R, D): the state that stands for the whole row; None where a tower has none."""


class BlipReader(nn.Module):
    """BLIP's image-grounded text encoder: the rows of an image share the keys and values of its tokens.

    Args:
        checkpointing: recompute each layer in the backward pass.
    """

    def __init__(self, text_encoder: nn.Module, *, checkpointing: bool) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self._checkpointing = checkpointing

    @property
    def read_width(self) -> int:
        """Width of the image tokens that it reads."""
        return self.text_encoder.config.encoder_hidden_size

    @property
    def state_width(self) -> int:
        """Width of what stands for a whole row."""
        return self.text_encoder.config.hidden_size

    def read(self, fused: Tensor, block: Block) -> Reading:
        """(B, N, D) fused tokens and a block of texts to their states."""
        grouping = Grouping.of(block.image, num_images=len(fused), rows_per_image=block.rows_per_image)
        states = encode_text(
            self.text_encoder,
            block.ids,
            block.mask,
            fused,
            grouping,
            num_tokens=block.tokens,
            checkpointing=self._checkpointing,
        )
        return Reading(states, states[:, 0])
