"""What says whether a text and an image belong together: BLIP's ITM side."""

from torch import nn

from model.towers.reading import BlipReader


class MatchTower(BlipReader):
    """BLIP's ITM side: the text encoder, which reads pairs or statements, and its two-way head.

    Args:
        itm_head: None where nothing is matched.
        checkpointing: recompute each layer in the backward pass.
    """

    def __init__(self, text_encoder: nn.Module, itm_head: nn.Module | None, *, checkpointing: bool = False) -> None:
        super().__init__(text_encoder, checkpointing=checkpointing)
        self.itm_head = itm_head
