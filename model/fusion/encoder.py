"""Two token streams of any widths in, one out: width adapters around a fusion of equal-width streams."""

from torch import Tensor, nn

from model.fusion.concatenation import ConcatenationEncoder
from model.fusion.difnet import DifnetEncoder
from shards.errors import ConfigError


class PlainSum(nn.Module):
    """The smallest fusion: the element-wise sum of the streams, without a parameter of its own."""

    def forward(
        self,
        stream_a: Tensor,
        stream_b: Tensor | None = None,
        mask_a: Tensor | None = None,  # noqa: ARG002 - the same call as DifnetEncoder; a sum mixes no tokens
        mask_b: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) and (B, N, D) to (B, N, D); masked tokens (True) of stream b add nothing."""
        if stream_b is None:
            return stream_a
        if stream_b.shape != stream_a.shape:
            raise ConfigError(
                f"sum fusion: stream a is {tuple(stream_a.shape)}, stream b is {tuple(stream_b.shape)}; both need the "
                "same token count: pool the second stream to the grid of the first"
            )
        return stream_a + (stream_b if mask_b is None else stream_b.masked_fill(mask_b[..., None], 0.0))


class FusionEncoder(nn.Module):
    """Adapters that bring both streams to the width of the fusion, the fusion, and the way back to `out_width`.

    Stream a has an adapter only where its width differs from `width`, so at equal widths the fusion starts from the
    very tokens that the next tower knows. Stream b always has one: it comes from another network. `width_b` is None
    for a single stream; the output Linear exists only where `out_width` differs.

    Raises:
        ConfigError: the fusion has another width or another number of streams than asked for.
    """

    def __init__(
        self,
        fusion: DifnetEncoder | ConcatenationEncoder | PlainSum,
        *,
        width_a: int,
        width_b: int | None,
        width: int,
        out_width: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_fusion(fusion, width=width, two_streams=width_b is not None)
        linear_only = isinstance(fusion, PlainSum)
        self.adapter_a = _adapter(width_a, width, dropout, linear_only) if width_a != width else nn.Identity()
        self.adapter_b = _adapter(width_b, width, dropout, linear_only) if width_b is not None else None
        self.fusion = fusion
        self.output = nn.Linear(width, out_width) if out_width != width else nn.Identity()

    def forward(
        self,
        tokens_a: Tensor,
        tokens_b: Tensor | None = None,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
    ) -> Tensor:
        """(B, N, width_a) and (B, N, width_b) or None to (B, N, out_width); masks are (B, N), True = padding.

        Raises:
            ConfigError: a second stream is there and should not be, or the other way round.
        """
        if (tokens_b is None) != (self.adapter_b is None):
            found, expected = ("one stream", "two") if tokens_b is None else ("two streams", "one")
            raise ConfigError(f"fusion encoder: got {found}, but was built for {expected}")
        adapted_b = None if self.adapter_b is None else self.adapter_b(tokens_b)
        return self.output(self.fusion(self.adapter_a(tokens_a), adapted_b, mask_a, mask_b))


def _adapter(width_in: int, width_out: int, dropout: float, linear_only: bool) -> nn.Module:
    """DIFNet's embedding of a stream (Linear, ReLU, Dropout, LayerNorm), or the Linear alone before a plain sum."""
    if linear_only:
        return nn.Linear(width_in, width_out)
    return nn.Sequential(nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(width_out))


def _check_fusion(fusion: DifnetEncoder | ConcatenationEncoder | PlainSum, *, width: int, two_streams: bool) -> None:
    if not isinstance(fusion, PlainSum) and fusion.width != width:
        raise ConfigError(f"fusion encoder: adapters of width {width} around a fusion of width {fusion.width}")
    if isinstance(fusion, DifnetEncoder) and fusion.second_stream != two_streams:
        # private norms without a second stream would never see a gradient
        raise ConfigError(
            f"fusion encoder: built with second_stream={fusion.second_stream}, but "
            f"{'there is' if two_streams else 'there is no'} second stream: build it with second_stream={two_streams}"
        )
