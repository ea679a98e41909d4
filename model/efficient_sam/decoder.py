"""EfficientSAM's mask decoder: prompt tokens and a feature map become masks, key for key the official one.

Shapes: R prompts, T tokens, K neck channels, (h, w) the grid of the image encoder, N = h·w cells, M masks.
Source: EfficientSAM (Xiong et al., CVPR 2024), `yformer/EfficientSAM`, after SAM (Kirillov et al., ICCV 2023).
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import ConfigError

CROSS_DOWNSAMPLE = 2
"""Attention between tokens and image runs at half the width."""


@dataclass(frozen=True, kw_only=True)
class MaskDecoderConfig:
    """The sizes of a mask decoder; the defaults are those of both official models."""

    depth: int = 2
    """Layers of the two-way transformer."""
    heads: int = 8
    mlp_width: int = 2048
    upscaling_widths: tuple[int, ...] = (64, 32)
    """Channels after each doubling of the map; the last is what masks are products with."""
    num_masks: int = 3
    """Masks per prompt, for a prompt may mean a part, a thing or a group. The file holds one more, for single masks."""
    iou_depth: int = 2
    iou_width: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value or min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ConfigError(f"EfficientSAM's mask decoder: {field.name} is {value}, expected at least 1")

    @property
    def upscaling(self) -> int:
        """How many times finer than the grid a mask is."""
        return 2 ** len(self.upscaling_widths)


class MaskPrediction(NamedTuple):
    """Several masks for each prompt; which one is best, the predicted IoU says."""

    logits: Tensor
    """(..., M, h', w') in fp32, h' = 4 h with the official sizes; at least 0 is inside."""
    iou: Tensor
    """(..., M) in fp32: each mask's predicted intersection over union with what was meant; no sigmoid bounds it."""


class MaskDecoder(nn.Module):
    """Learnt output tokens and prompt tokens read the image, the image reads them; then each mask is a product."""

    def __init__(self, config: MaskDecoderConfig, width: int) -> None:
        super().__init__()
        masks = config.num_masks + 1
        self.transformer = TwoWayTransformer(config, width)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(masks, width)
        self.final_output_upscaling_layers = _upscaling(width, config.upscaling_widths)
        self.output_hypernetworks_mlps = nn.ModuleList(
            GeluStack(width, width, config.upscaling_widths[-1], depth=2) for _ in range(masks)
        )
        self.iou_prediction_head = GeluStack(width, config.iou_width, masks, depth=config.iou_depth)

    def forward(self, features: Tensor, positions: Tensor, prompts: Tensor) -> MaskPrediction:
        """Maps (R, K, h, w), codes of their cells (1, K, h, w) and prompts (R, T, K) to M masks for each prompt.

        Mask token 0, the single mask of an unambiguous prompt, takes part in attention and is not decoded.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(prompts), -1, -1)
        tokens, cells = self.transformer(features, positions, torch.cat([own, prompts], dim=1))
        upscaled = cells.transpose(1, 2).unflatten(2, features.shape[-2:])
        for layer in self.final_output_upscaling_layers:
            upscaled = layer(upscaled)
        weights = [head(tokens[:, 1 + slot]) for slot, head in enumerate(self.output_hypernetworks_mlps) if slot > 0]
        logits = torch.stack(weights, dim=1) @ upscaled.flatten(2)
        iou = self.iou_prediction_head(tokens[:, 0])[:, 1:]
        return MaskPrediction(logits.float().unflatten(2, upscaled.shape[-2:]), iou.float())


class TwoWayTransformer(nn.Module):
    """Tokens and image cells attend to each other; a last attention of the tokens to the image ends it."""

    def __init__(self, config: MaskDecoderConfig, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayLayer(width, config.heads, config.mlp_width, first=index == 0) for index in range(config.depth)
        )
        self.final_attn_token_to_image = Attention(width, config.heads, CROSS_DOWNSAMPLE)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, features: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (R, K, h, w), codes (1, K, h, w) and tokens (R, T, K) to tokens (R, T, K) and cells (R, N, K)."""
        cells = features.flatten(2).transpose(1, 2)
        positions = positions.to(cells.dtype).flatten(2).transpose(1, 2)
        token_positions = tokens  # a token's place is the token that it started as
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, token_positions, positions)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_positions, cells + positions, cells)
        return self.norm_final_attn(tokens), cells


class TwoWayLayer(nn.Module):
    """Tokens among themselves, tokens to image, MLP, image to tokens; a norm after each.

    Two things differ from SAM: the first layer keeps its residual, and later layers add the places of the tokens to
    the tokens themselves, so that they reach the values of self-attention and the residual stream.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, CROSS_DOWNSAMPLE)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = GeluStack(width, mlp_width, width, depth=1)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, CROSS_DOWNSAMPLE)

    def forward(
        self, tokens: Tensor, cells: Tensor, token_positions: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and their places (R, T, K), cells (R, N, K) and theirs (1, N, K) to tokens and cells."""
        if not self.first:
            tokens = tokens + token_positions
        tokens = self.norm1(tokens + self.self_attn(tokens, tokens, tokens))
        placed_cells = cells + positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_positions, placed_cells, cells))
        tokens = self.norm3(tokens + self.mlp(tokens))
        cells = self.norm4(cells + self.cross_attn_image_to_token(placed_cells, tokens + token_positions, tokens))
        return tokens, cells


class Attention(nn.Module):
    """Multi-head attention, at a fraction of the width where `downsample` says so."""

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width // downsample)
        self.k_proj = nn.Linear(width, width // downsample)
        self.v_proj = nn.Linear(width, width // downsample)
        self.out_proj = nn.Linear(width // downsample, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(R, Tq, K), (R, Tk, K), (R, Tk, K) to (R, Tq, K)."""
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        per_head = [tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tokens in projected]
        mixed = F.scaled_dot_product_attention(*per_head)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class GeluStack(nn.Module):
    """`depth` linear layers, each followed by a GELU, and a last one without."""

    def __init__(self, width: int, hidden: int, out: int, *, depth: int) -> None:
        super().__init__()
        widths = [width, *[hidden] * depth]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.GELU()) for before, after in pairwise(widths)
        )
        self.fc = nn.Linear(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.fc(tokens)


def _upscaling(width: int, widths: tuple[int, ...]) -> nn.ModuleList:
    """Each doubles the map's sides; all but the last normalise over the whole map."""
    return nn.ModuleList(
        nn.Sequential(
            nn.ConvTranspose2d(before, after, kernel_size=2, stride=2),
            nn.GroupNorm(1, after) if index + 1 < len(widths) else nn.Identity(),
            nn.GELU(),
        )
        for index, (before, after) in enumerate(pairwise((width, *widths)))
    )
