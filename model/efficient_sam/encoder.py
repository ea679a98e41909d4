"""EfficientSAM's image encoder, key for key the official one.

Shapes: B images, C width, (h, w) the patch grid, N = h·w tokens (no class token), K neck channels.
Source: EfficientSAM (Xiong et al., CVPR 2024), `yformer/EfficientSAM`.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpointing import run_layer, which_again
from shards.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EfficientSamEncoderConfig:
    """The sizes of an image encoder. `image_size` may differ from training: positions are interpolated."""

    image_size: int = 1024
    """Side in pixels of the square that images are resized to."""
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: int = 4
    neck_width: int = 256
    pos_grid: int = 14
    """Side of the stored position grid: 14 from pre-training at 224 pixels."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"EfficientSAM: {field.name} is {getattr(self, field.name)}, expected at least 1")
        if self.width % self.heads:
            raise ConfigError(f"EfficientSAM: width {self.width} is not a multiple of heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"EfficientSAM: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"nearest below: {self.image_size // self.patch_size * self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


EFFICIENT_SAM_CONFIGS = {
    "vitt": EfficientSamEncoderConfig(),
    "vits": EfficientSamEncoderConfig(width=384, heads=6),
}


class EfficientSamEncoder(nn.Module):
    """Images to a feature map: patches, positions, pre-norm blocks without a final norm, convolutional neck.

    Any precision: `.half()` and `.bfloat16()` work, pixels are normalised in fp32 first.
    """

    def __init__(self, config: EfficientSamEncoderConfig, *, gradient_checkpointing: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.pos_grid**2, config.width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.neck_width, kernel_size=1, bias=False),
            ChannelNorm(config.neck_width),
            nn.Conv2d(config.neck_width, config.neck_width, kernel_size=3, padding=1, bias=False),
            ChannelNorm(config.neck_width),
        )
        # in thousandths: integer buffers keep the exact values when the module is cast to half precision
        self.register_buffer("mean_milli", torch.tensor([485, 456, 406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std_milli", torch.tensor([229, 224, 225]).view(3, 1, 1), persistent=False)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks.apply(_init_linear)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of any size, floats in [0, 1], to a map (B, K, h, w) in the encoder's precision."""
        tokens = self.patch_embed(self.preprocess(images))  # (B, h, w, C)
        _, height, width, _ = tokens.shape
        tokens = (tokens + self._positions()).flatten(1, 2)
        for block, again in which_again(self.blocks, self.gradient_checkpointing):
            tokens = run_layer(block, again, tokens)
        return self.neck(tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2))

    def preprocess(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 3, image_size, image_size), normalised with ImageNet's mean and deviation.

        Bilinear, without antialias and without keeping the aspect ratio, as the original does.
        """
        size = (self.config.image_size, self.config.image_size)
        resized = F.interpolate(images.float(), size, mode="bilinear", align_corners=False)
        return (resized - self.mean_milli / 1000) / (self.std_milli / 1000)

    def _positions(self) -> Tensor:
        """The stored grid at the size of this one, (1, h, w, C); slot 0 belongs to a class token that is not there."""
        stored = self.pos_embed[:, 1:].unflatten(1, (self.config.pos_grid, self.config.pos_grid))
        if self.config.grid == self.config.pos_grid:
            return stored
        size = (self.config.grid, self.config.grid)
        resized = F.interpolate(stored.permute(0, 3, 1, 2).float(), size, mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1).to(stored.dtype)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each one vector."""

    def __init__(self, config: EfficientSamEncoderConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, h, w, C)."""
        return self.proj(pixels.to(self.proj.weight.dtype)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: EfficientSamEncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.width * config.mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class SelfAttention(nn.Module):
    """Global attention; an explicit softmax over 4096 tokens would hold 201 MB per image and layer in fp32."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, K, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
