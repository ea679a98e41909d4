"""What an image encoder is to the rest of the house: what a batch shows in, tokens out; the first stream or the second.

Shapes: B images, S side of the pixels as the loader makes them, P tokens in front of the grid, g cells on a side of it,
D width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from transformers import BlipVisionModel

from model.efficient_sam.encoder import EfficientSamEncoder
from model.pixels import blip_pixels, blip_reads
from model.towers.blip import encode_image
from shards.format.index import Medium
from shards.read.collate import Shown


class VisionTower(ABC):
    """An image encoder around the module that holds its weights.

    It is no module itself: what is registered, frozen, cast and saved is `module`, under the names that it has alone.
    """

    module: nn.Module
    width: int
    """D."""
    medium: Medium = "pixels"
    """What it reads of an image."""
    image_size: int | None
    """Side in pixels of the squares that the module reads; None for one that reads regions."""
    grid: int | None
    """g; None where tokens lie on no grid."""
    prefix: int
    """P: class token, registers; 0 for an encoder that gives cells alone."""
    starts_gated: bool = False
    """Whether a factor in it may start at zero and hold back the gradients of others for a step."""

    @property
    def preprocessing(self) -> str:
        """What the module is given of an image, in words: with its weights, all that its tokens depend on."""
        return f"{type(self).__name__} at {self.image_size}"

    @abstractmethod
    def encode(self, shown: Shown) -> Tensor:
        """What a batch shows, pixels (B, 3, S, S) uint8 of any S, to (B, P + g², D): the cells row by row. Of regions,
        as many tokens as there are."""


class BlipVisionTower(VisionTower):
    """BLIP's vision transformer, with one class token.

    Args:
        checkpointing: recompute each layer in the backward pass.
    """

    prefix = 1

    def __init__(self, module: BlipVisionModel, *, checkpointing: bool = False) -> None:
        self.module, self._checkpointing = module, checkpointing
        self.width, self.image_size = module.config.hidden_size, module.config.image_size
        self.grid = module.config.image_size // module.config.patch_size

    @property
    def preprocessing(self) -> str:
        return f"{super().preprocessing}, {blip_reads(self.image_size)}"

    def encode(self, shown: Tensor) -> Tensor:
        return encode_image(self.module, self.inputs(shown), checkpointing=self._checkpointing)

    def inputs(self, shown: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to what the module reads, in its precision."""
        return blip_pixels(shown, self.image_size, self.module.embeddings.patch_embedding.weight.dtype)


class EfficientSamTower(VisionTower):
    """EfficientSAM's image encoder, which has no class token; it resizes and normalises pixels itself."""

    prefix = 0

    def __init__(self, module: EfficientSamEncoder) -> None:
        self.module, self.width = module, module.config.neck_width
        self.image_size, self.grid = module.config.image_size, module.config.grid

    def encode(self, shown: Tensor) -> Tensor:
        assert shown.dtype == torch.uint8, f"pixels are uint8, got {shown.dtype}"
        return self.module(shown.float() / 255).flatten(2).transpose(1, 2)
