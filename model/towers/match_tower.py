"""What says whether a text and an image belong together: BLIP's ITM side."""

from torch import nn


class MatchTower(nn.Module):
    """BLIP's ITM side: the text encoder and its two-way head."""

    def __init__(self, text_encoder: nn.Module, itm_head: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.itm_head = text_encoder, itm_head

    @property
    def read_width(self) -> int:
        """Width of the image tokens that it reads."""
        return self.text_encoder.config.encoder_hidden_size
