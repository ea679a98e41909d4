"""Fusion by concatenation: the streams side by side, a linear map back to one width, then the same layers as DIFNet's.

It has no layer that the streams pass apart, so it tells what these are worth (an ablation, not a published model).
"""

from torch import Tensor, cat, nn

from model.checkpointing import run_layer, which_again
from model.fusion.difnet import FusionLayer, attention_mask, check_layers
from shards.errors import ConfigError


class ConcatenationEncoder(nn.Module):
    """Fuse two streams of equal shape into one.

    Raises:
        ConfigError: the sizes contradict each other.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        ffn_width: int,
        layers: int = 3,
        dropout: float = 0.1,
        gradient_checkpointing: float = 0.0,
    ) -> None:
        super().__init__()
        check_layers(width, heads, ffn_width, dropout)
        self.width, self.gradient_checkpointing = width, gradient_checkpointing
        self.mix = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList(
            FusionLayer(width, heads, ffn_width, dropout, private_norms=False) for _ in range(layers)
        )

    def forward(
        self,
        stream_a: Tensor,
        stream_b: Tensor | None = None,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) and (B, N, D) to (B, N, D); masks are (B, N), True = padding; what is masked of stream b is 0.

        Raises:
            ConfigError: there is one stream only, or they differ in shape.
        """
        if stream_b is None or stream_b.shape != stream_a.shape:
            found = "one stream" if stream_b is None else f"{tuple(stream_a.shape)} and {tuple(stream_b.shape)}"
            raise ConfigError(f"fusion.name: concatenation needs two streams of one shape, got {found}")
        second = stream_b if mask_b is None else stream_b.masked_fill(mask_b[..., None], 0.0)
        fused, attend = self.mix(cat([stream_a, second], dim=-1)), attention_mask(mask_a)
        for layer, again in which_again(self.layers, self.gradient_checkpointing):
            fused = run_layer(layer, again, fused, attend, False)
        return fused
