"""The second token stream: a feature map of EfficientSAM or a second BLIP, pooled to the first tower's grid."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipVisionModel

from model.efficient_sam.encoder import EfficientSamEncoder
from model.efficient_sam.segmenter import Segmenter
from model.looking.guidance import Look
from model.pixels import blip_pixels
from model.towers.blip import encode_image


class EfficientSamStream(nn.Module):
    """Pixels as the loader gives them to EfficientSAM's map. Holds the encoder alone, so that it can be frozen."""

    def __init__(self, encoder: EfficientSamEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def width(self) -> int:
        """Channels of the map."""
        return self.encoder.config.neck_width

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, 3, S, S) to a map (B, C, h, w); the encoder resizes and normalises."""
        assert pixels.dtype == torch.uint8, f"pixels are uint8, got {pixels.dtype}"
        return self.encoder(pixels.float() / 255)


class EfficientSamMaskStream(EfficientSamStream):
    """The same map, to be weighed by the mask of each question."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__(segmenter.image_encoder)
        self.segmenter = segmenter

    @staticmethod
    def weigh(maps: Tensor, image_of_row: Tensor, look: Look, blend: float) -> Tensor:
        """Maps (B, C, h, w) of images to those of questions (R, C, h, w): (1 - blend) * map + blend * map * mask.

        A question without a point has no mask, and its map stays as it is.
        """
        assert look.masks is not None, "weighed by masks, which guidance.blend 0 would leave out"
        rows = maps[image_of_row]
        inside = F.interpolate(look.masks[:, None].to(rows), maps.shape[-2:], mode="area")
        found = torch.tensor([bool(points) for points in look.points], device=rows.device)
        inside = torch.where(found[:, None, None, None], inside, 1.0)
        return rows * ((1.0 - blend) + blend * inside)


class BlipStream(nn.Module):
    """A second BLIP encoder, whose class token is left out: its map lies on a grid like any other."""

    def __init__(self, encoder: BlipVisionModel, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.encoder, self._checkpointing = encoder, checkpointing

    @property
    def width(self) -> int:
        """Channels of the map."""
        return self.encoder.config.hidden_size

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, 3, S, S) to a map (B, C, g, g)."""
        dtype = self.encoder.embeddings.patch_embedding.weight.dtype
        inputs = blip_pixels(pixels, self.encoder.config.image_size, dtype)
        cells = encode_image(self.encoder, inputs, checkpointing=self._checkpointing)[:, 1:]
        grid = self.encoder.config.image_size // self.encoder.config.patch_size
        return cells.transpose(1, 2).unflatten(2, (grid, grid))


class GridTokens(nn.Module):
    """A map to tokens that line up with a vision transformer of `grid` × `grid` patches and a class token.

    Always trained, and so apart from the encoder that may be frozen: EfficientSAM has no class token, a learnt one
    takes its slot.
    """

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 1 + grid², C): slot 0 the class token, then the cells row by row.

        Takes the map to the precision of the class token, which is that of the trained part.
        """
        cells = pool_to_grid(features.to(self.class_token.dtype), self.grid).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(cells), -1, -1), cells], dim=1)


def pool_to_grid(features: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) to (B, C, grid, grid) by averaging what lies under each cell.

    Where the grid does not divide the map (64 to 24 at full size), neighbouring cells share the row or column that
    lies under both. A map with fewer rows or columns than the grid has nothing to average: it is interpolated
    bilinearly instead.
    """
    if min(features.shape[-2:]) >= grid:
        return F.adaptive_avg_pool2d(features, grid)
    return F.interpolate(features, (grid, grid), mode="bilinear", align_corners=False)
