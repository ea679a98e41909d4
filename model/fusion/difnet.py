"""The DIFNet fusion encoder: two token streams refined apart, summed, then refined together.

Shapes: B images, N tokens of each stream, D width (`width`), H heads. Masks are boolean (B, N), True = padding.
Source: DIFNet (Wu et al., CVPR 2022), `MultiLevelEncoder` with iterative independent layer norm (IILN).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpointing import run_layer, which_again
from model.fit import misfits
from shards.errors import ConfigError, DataError


class DifnetEncoder(nn.Module):
    """Fuse two streams of equal shape into one.

    The first `separate_layers` (Lf) layers run `repeats` (T) times on each stream by itself: attention and feed-forward
    weights are shared by the streams, two layer norms of a layer are private. The streams are then summed, the other
    `layers` - Lf layers refine the sum, and the sum itself is added to the result (the skip of both streams).
    There is no positional embedding and no final norm: permuting the tokens permutes the output, and a fresh encoder
    gives a standard deviation near 2.4 for unit inputs.

    With `second_stream` false this is the single-stream baseline of the same depth, which has no private norms.
    Only what takes part in `forward` is a parameter: ZeRO waits for the gradient of every parameter that it knows.

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
        separate_layers: int = 1,
        repeats: int = 2,
        dropout: float = 0.1,
        gradient_checkpointing: float = 0.0,
        second_stream: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(width, heads, ffn_width, layers, separate_layers, repeats, dropout)
        self.width = width
        self.separate_layers = separate_layers
        self.repeats = repeats
        self.gradient_checkpointing = gradient_checkpointing
        self.second_stream = second_stream
        self.layers = nn.ModuleList(
            FusionLayer(width, heads, ffn_width, dropout, private_norms=second_stream and index < separate_layers)
            for index in range(layers)
        )

    def forward(
        self,
        stream_a: Tensor,
        stream_b: Tensor | None = None,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
    ) -> Tensor:
        """Fuse (B, N, D) and (B, N, D), or pass one stream through the same layers; returns (B, N, D).

        Masked tokens of either stream reach no unmasked output. The result has the tokens of stream a: its mask holds
        after the sum, and what stands at its masked positions has no meaning. A fully masked image gives finite
        numbers, and so gradients.

        Raises:
            ConfigError: the streams differ in shape, or there is a second stream and the encoder was built for one.
        """
        self._check_streams(stream_a, stream_b)
        attend_a, attend_b = attention_mask(mask_a), attention_mask(mask_b)
        out_a, out_b = stream_a, stream_b
        layers = list(which_again(self.layers, self.gradient_checkpointing))
        for layer, again in layers[: self.separate_layers]:
            for _ in range(self.repeats):
                out_a = run_layer(layer, again, out_a, attend_a, False)
                if out_b is not None:
                    out_b = run_layer(layer, again, out_b, attend_b, True)
        summed = out_a
        if out_b is not None:
            summed = out_a + (out_b if mask_b is None else out_b.masked_fill(mask_b[..., None], 0.0))
        fused = summed
        for layer, again in layers[self.separate_layers :]:
            fused = run_layer(layer, again, fused, attend_a, False)
        return fused + summed

    def load_original_state(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Load the weights of an original DIFNet encoder and return the names that were dropped.

        The original carries norms that never take part in its forward: every `mhatt.layer_norm1`, and `lnorm1` and
        `pwff.layer_norm1` of the layers after the separate ones. Only these are dropped.

        Raises:
            DataError: anything else is missing, unexpected or of another shape; the message names it.
        """
        own = self.state_dict()
        dead = tuple(name for name in state if name not in own and name in self._dead_names())
        live = {name: value for name, value in state.items() if name not in dead}
        faults = misfits(live, own)
        if faults:
            raise DataError(
                f"DIFNet weights do not fit this encoder: {faults}; "
                "build it with the sizes that the weights were trained with"
            )
        self.load_state_dict(live)
        return dead

    def _dead_names(self) -> set[str]:
        norms = ("mhatt.layer_norm1", "lnorm1", "pwff.layer_norm1")
        return {
            f"layers.{index}.{norm}.{part}"
            for index, layer in enumerate(self.layers)
            for norm in (norms[:1] if layer.lnorm1 is not None else norms)
            for part in ("weight", "bias")
        }

    def _check_streams(self, stream_a: Tensor, stream_b: Tensor | None) -> None:
        if stream_a.shape[-1] != self.width:
            raise ConfigError(f"fusion encoder: stream a has width {stream_a.shape[-1]}, expected {self.width}")
        if stream_b is None:
            return
        if not self.second_stream:
            raise ConfigError("fusion encoder: got a second stream, but was built with second_stream=False")
        if stream_b.shape != stream_a.shape:
            raise ConfigError(
                f"fusion encoder: stream a is {_shape(stream_a)}, stream b is {_shape(stream_b)}; fusion is a sum, so "
                "both need the same images, token count and width: pool the second stream to the grid of the first"
            )


class FusionLayer(nn.Module):
    """One post-norm layer; with `private_norms` the second stream has its own two layer norms (IILN).

    a1 = norm(x + attention(x)); a2 = LN_m(x + a1); y = LN'_m(a2 + ffn(a2)): the attention has a residual and a norm
    of its own, shared by the streams, and x is added twice. m is the stream.
    """

    def __init__(self, width: int, heads: int, ffn_width: int, dropout: float, *, private_norms: bool) -> None:
        super().__init__()
        self.mhatt = NormedAttention(width, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.lnorm = nn.LayerNorm(width)
        self.lnorm1 = nn.LayerNorm(width) if private_norms else None
        self.pwff = NormedFeedForward(width, ffn_width, dropout, private_norms=private_norms)

    def forward(self, tokens: Tensor, attend: Tensor | None, second: bool) -> Tensor:
        """(B, N, D) to (B, N, D); `attend` is None or (B, 1, 1, N), True where a key may be seen."""
        norm = self.lnorm1 if second else self.lnorm
        assert norm is not None, "a layer without private norms ran on the second stream"
        attended = norm(tokens + self.dropout(self.mhatt(tokens, attend)))
        return self.pwff(attended, second)


class NormedAttention(nn.Module):
    """Self-attention with its residual and layer norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, attend: Tensor | None) -> Tensor:
        return self.layer_norm(tokens + self.dropout(self.attention(tokens, attend)))


class Attention(nn.Module):
    """Multi-head self-attention, dropout on the attention weights."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.fc_q = nn.Linear(width, width)
        self.fc_k = nn.Linear(width, width)
        self.fc_v = nn.Linear(width, width)
        self.fc_o = nn.Linear(width, width)
        for linear in (self.fc_q, self.fc_k, self.fc_v, self.fc_o):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, attend: Tensor | None) -> Tensor:
        query, key, value = (
            linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, D/H)
            for linear in (self.fc_q, self.fc_k, self.fc_v)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attend, dropout_p=dropout)
        return self.fc_o(mixed.transpose(1, 2).flatten(2))


class NormedFeedForward(nn.Module):
    """The ReLU feed-forward network with its residual and layer norm, private for the second stream on demand."""

    def __init__(self, width: int, ffn_width: int, dropout: float, *, private_norms: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.inner_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(width)
        self.layer_norm1 = nn.LayerNorm(width) if private_norms else None

    def forward(self, tokens: Tensor, second: bool) -> Tensor:
        norm = self.layer_norm1 if second else self.layer_norm
        assert norm is not None, "a layer without private norms ran on the second stream"
        return norm(tokens + self.dropout(self.fc2(self.inner_dropout(F.relu(self.fc1(tokens))))))


def attention_mask(mask: Tensor | None) -> Tensor | None:
    """(B, N), True = padding, to (B, 1, 1, N), True = may be attended to.

    A fully masked image may attend everywhere: a softmax over nothing is NaN in some attention kernels, and one NaN
    spoils the gradient of the whole batch.
    """
    if mask is None:
        return None
    assert mask.dtype == torch.bool, f"a mask is boolean, got {mask.dtype}"
    return (~mask | mask.all(dim=-1, keepdim=True))[:, None, None, :]


def _check_sizes(
    width: int, heads: int, ffn_width: int, layers: int, separate_layers: int, repeats: int, dropout: float
) -> None:
    check_layers(width, heads, ffn_width, dropout)
    if repeats < 1:
        raise ConfigError(f"fusion encoder: repeats is {repeats}, expected at least 1")
    if not 0 <= separate_layers < layers:
        raise ConfigError(
            f"fusion encoder: separate_layers is {separate_layers}, expected 0 <= separate_layers < layers ({layers}): "
            "at least one layer must follow the sum"
        )


def check_layers(width: int, heads: int, ffn_width: int, dropout: float) -> None:
    """Whether a `FusionLayer` can have these sizes.

    Raises:
        ConfigError: it cannot.
    """
    for name, value in (("width", width), ("heads", heads), ("ffn_width", ffn_width)):
        if value < 1:
            raise ConfigError(f"fusion encoder: {name} is {value}, expected at least 1")
    if width % heads:
        fits = max(count for count in range(1, heads) if width % count == 0)
        raise ConfigError(f"fusion encoder: width {width} is not a multiple of heads {heads}; heads={fits} fits")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"fusion encoder: dropout is {dropout}, expected 0 <= dropout < 1")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))
