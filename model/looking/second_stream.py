"""The second token stream: a feature map of EfficientSAM or of a vision tower, pooled to the first tower's grid."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.efficient_sam.encoder import EfficientSamEncoder
from model.efficient_sam.segmenter import Segmenter
from model.looking.guidance import Look
from model.towers.vision import EfficientSamTower, VisionTower


class TowerStream(nn.Module):
    """A vision tower as second stream: the tokens in front of its grid are left out, and the cells are a map."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.encoder, self.tower = tower.module, tower

    @property
    def width(self) -> int:
        """Channels of the map."""
        return self.tower.width

    @property
    def image_size(self) -> int:
        """Side in pixels of the squares that the encoder reads."""
        return self.tower.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, 3, S, S) to a map (B, C, g, g)."""
        return cells_to_map(self.tower.encode(pixels)[:, self.tower.prefix :])


class EfficientSamStream(TowerStream):
    """EfficientSAM's map. Holds the encoder alone, so that it can be frozen."""

    def __init__(self, encoder: EfficientSamEncoder) -> None:
        super().__init__(EfficientSamTower(encoder))


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


class GridTokens(nn.Module):
    """A map to tokens that line up with those of a first tower: `prefix` tokens, then `grid` × `grid` cells.

    Always trained, and so apart from the encoder that may be frozen: a map has no class token and no registers, learnt
    tokens take their slots.
    """

    def __init__(self, grid: int, width: int, *, prefix: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.class_token = nn.Parameter(torch.empty(1, prefix, width)) if prefix else None
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, prefix + grid², C): the learnt tokens, then the cells row by row.

        Takes the map to the precision of the learnt tokens, which is that of the trained part; without any, it keeps
        its own.
        """
        if self.class_token is None:
            return self._cells(features)
        cells = self._cells(features.to(self.class_token.dtype))
        first = self.class_token.expand(cells.shape[0], -1, -1)  # not len(cells): a graph would know one batch size
        return torch.cat([first, cells], dim=1)

    def _cells(self, features: Tensor) -> Tensor:
        return map_to_cells(pool_to_grid(features, self.grid))


def cells_to_map(cells: Tensor) -> Tensor:
    """(B, g², C) cells, row by row, to a map (B, C, g, g)."""
    side = math.isqrt(cells.shape[1])
    return cells.transpose(1, 2).unflatten(2, (side, side))


def map_to_cells(features: Tensor) -> Tensor:
    """The inverse of `cells_to_map`."""
    return features.flatten(2).transpose(1, 2)


def pool_to_grid(features: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) to (B, C, grid, grid) by averaging what lies under each cell.

    Where the grid does not divide the map (64 to 24 at full size), neighbouring cells share the row or column that
    lies under both. A map with fewer rows or columns than the grid has nothing to average: it is interpolated
    bilinearly instead.
    """
    if min(features.shape[-2:]) >= grid:
        return F.adaptive_avg_pool2d(features, grid)
    return F.interpolate(features, (grid, grid), mode="bilinear", align_corners=False)
