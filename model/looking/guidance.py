"""Where to look for a question: heatmap, points on it, a mask at the points, and the heatmap that the mask sharpens.

Shapes: B images, R rows of text, N image tokens, D width, g the side of the first tower's grid, K channels of
EfficientSAM's map, (h, w) its grid, (h', w') its masks, P points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.config import GuidanceConfig
from model.efficient_sam.prompts import PADDING, POINT
from model.efficient_sam.segmenter import Segmenter
from model.looking.heatmap import check_block, default_block, text_heatmaps
from model.looking.points import Point, choose_points, refine_heatmap, to_unit
from model.rows import Grouping
from model.towers.match_tower import MatchTower
from shards.errors import ConfigError


class Look(NamedTuple):
    """What was found for each row."""

    heatmaps: Tensor
    """(R, g, g) float32 on the CPU, as GradCAM gives them"""
    points: list[list[Point]]
    """Hottest first; none where the heatmap points nowhere"""
    masks: Tensor | None
    """(R, h', w') probabilities on the CPU; None without a segmenter, of no meaning in a row without points"""
    iou: Tensor | None
    """(R,) their predicted IoU"""
    refined: Tensor
    """(R, g, g) float32 on the CPU: the heatmaps after the masks"""


def look(
    tower: MatchTower,
    ids: Tensor,
    mask: Tensor,
    image_tokens: Tensor,
    grouping: Grouping,
    *,
    segmenter: Segmenter | None,
    embeddings: Tensor | None,
    config: GuidanceConfig,
    num_tokens: int | None = None,
    prefix: int = 1,
) -> Look:
    """Find what each question is about; a row's result depends on that row alone.

    Args:
        tower: reads the match between question and image.
        ids: (R, L) token ids of the questions; `mask` (R, L) bool.
        image_tokens: (B, N, D).
        grouping: which rows read which image.
        segmenter: None leaves the heatmaps as they are.
        embeddings: (B, K, h, w) of the segmenter's image encoder, made once per image.
        num_tokens: of the mask; None asks the mask, and waits for a GPU.
        prefix: image tokens in front of the cells: BLIP's one class token.
    """
    heatmaps = find_heatmaps(tower, ids, mask, image_tokens, grouping, config, num_tokens=num_tokens, prefix=prefix)
    points = find_points(heatmaps, config)
    if segmenter is None or config.blend == 0:
        return Look(heatmaps, points, None, None, heatmaps)
    assert embeddings is not None, "a segmenter reads what its image encoder has made of the images"
    image_of_row = grouping.slots // grouping.rows_per_image
    masks, iou = find_masks(segmenter, embeddings, image_of_row, points, heatmaps.shape[-1])
    return Look(heatmaps, points, masks, iou, sharpen(heatmaps, masks, points, config))


def block_of(tower: MatchTower, config: GuidanceConfig) -> int:
    """The layer whose cross-attention is read.

    Raises:
        ConfigError: the tower has no such layer that can be.
    """
    layers = len(tower.text_encoder.encoder.layer)
    block = default_block(layers) if config.block is None else config.block
    check_block(block, layers)
    return block


def check_plain_width(tower: MatchTower, vision_width: int, setting: str, *, instead: str) -> None:
    """Whether a matching tower can look with the vision tower's own tokens, which no fusion brings to its width.

    Args:
        setting: `key: value` that asks for it, and `instead` what works at any width.

    Raises:
        ConfigError: the widths differ.
    """
    if tower.read_width != vision_width:
        raise ConfigError(
            f"{setting} looks with the tokens of model.vision, which are {vision_width} wide, and model.match reads "
            f"{tower.read_width}; name checkpoints of one width in both, or use {instead}"
        )


def find_heatmaps(
    tower: MatchTower,
    ids: Tensor,
    mask: Tensor,
    image_tokens: Tensor,
    grouping: Grouping,
    config: GuidanceConfig,
    *,
    num_tokens: int | None = None,
    prefix: int = 1,
) -> Tensor:
    """(R, g, g) float32 on the CPU; what overflowed in half precision is cold."""
    heatmaps = text_heatmaps(
        tower, ids, mask, image_tokens, grouping, block=block_of(tower, config), num_tokens=num_tokens, prefix=prefix
    )
    return heatmaps.cpu().nan_to_num(0.0, posinf=0.0)


def find_points(heatmaps: Tensor, config: GuidanceConfig) -> list[list[Point]]:
    """The points of each heatmap, hottest first."""
    names = ("num_points", "min_share", "smoothing", "seed")
    settings = {name: getattr(config, name) for name in names}
    return [choose_points(heatmap, **settings) for heatmap in heatmaps.numpy()]


@torch.no_grad()
def find_masks(
    segmenter: Segmenter, embeddings: Tensor, image_of_row: Tensor, points: Sequence[Sequence[Point]], grid: int
) -> tuple[Tensor, Tensor]:
    """Probabilities (R, h', w') of the best mask at each row's points and their predicted IoU (R,), on the CPU.

    A row without points gets a mask of no meaning.

    Args:
        grid: side of the heatmaps that the points were chosen on.
    """
    longest = max(1, max(map(len, points), default=1))
    places, labels = torch.zeros(len(points), longest, 2), torch.full((len(points), longest), PADDING)
    for row, chosen in enumerate(points):
        places[row, : len(chosen)] = torch.from_numpy(to_unit(chosen, grid)).float()
        labels[row, : len(chosen)] = POINT
    device = embeddings.device
    logits, iou = segmenter.masks_for(embeddings, image_of_row, places.to(device), labels.to(device))
    return logits.sigmoid().cpu(), iou.cpu()


def sharpen(heatmaps: Tensor, masks: Tensor, points: Sequence[Sequence[Point]], config: GuidanceConfig) -> Tensor:
    """(R, g, g) heatmaps with the heat inside of the masks emphasised; a row without points keeps its own."""
    refined = [
        refine_heatmap(heatmap, mask if found else None, blend=config.blend)
        for heatmap, mask, found in zip(heatmaps.numpy(), masks.numpy(), points, strict=True)
    ]
    return torch.from_numpy(np.stack(refined)) if refined else heatmaps
