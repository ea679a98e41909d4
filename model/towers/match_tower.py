"""What says whether a text and an image belong together: BLIP's ITM side."""

from torch import Tensor, nn

from model.towers.reading import Reading, read_with_blip
from shards.read.collate import Block


class MatchTower(nn.Module):
    """BLIP's ITM side: the text encoder and its two-way head.

    Args:
        checkpointing: recompute each layer in the backward pass.
    """

    def __init__(self, text_encoder: nn.Module, itm_head: nn.Module | None, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.text_encoder, self.itm_head = text_encoder, itm_head
        self._checkpointing = checkpointing

    @property
    def read_width(self) -> int:
        """Width of the image tokens that it reads."""
        return self.text_encoder.config.encoder_hidden_size

    def read(self, fused: Tensor, block: Block) -> Reading:
        """(B, N, D) fused tokens and a block of pairs or statements to their states."""
        return read_with_blip(self.text_encoder, fused, block, checkpointing=self._checkpointing)
