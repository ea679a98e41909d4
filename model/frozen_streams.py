"""The streams of a fusion that no training changes: what their tokens depend on, and the tokens that are worth keeping.

Shapes: B images, N tokens, D width, g side of the first tower's grid.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.fusion_objective import FusionObjective
from model.looking.second_stream import TowerStream, map_to_cells, pool_to_grid
from shards.format.features import Stream
from shards.read.collate import Shown


class FrozenStream(NamedTuple):
    """A stream whose encoder is frozen."""

    name: Stream
    weights: str
    """sha256 of the encoder's weights."""
    preprocessing: str
    """How pixels come to the encoder, and what of its output is kept, in words."""


def frozen_streams(objective: FusionObjective, image_size: int | None) -> list[FrozenStream]:
    """The streams whose encoders are frozen. To be called before these are cast to a lower precision.

    Args:
        image_size: side in pixels of the squares that the loader makes; None where it makes regions.
    """
    loaded = "regions" if image_size is None else f"squares of {image_size} pixels"
    found = []
    if objective.is_frozen("vision"):
        made = f"{loaded} by {objective.sight.preprocessing}"
        found.append(FrozenStream("vision", weights_digest(objective.sight.module), made))
    second = objective.tower("second_stream")
    if objective.is_frozen("second_stream") and isinstance(second, TowerStream):
        made = f"{loaded} by {second.tower.preprocessing}, {_kept_of_map(objective)}"
        found.append(FrozenStream("second_stream", weights_digest(second.tower.module), made))
    return found


@torch.no_grad()
def stream_tokens(objective: FusionObjective, stream: Stream, shown: Shown) -> Tensor:
    """(B, N, D) float32 tokens of a frozen stream, as they are kept.

    Of the second stream these are the cells of its map. Pooling to the grid has no weights and is done before: pooled
    again, cells stay what they are. Under guidance the whole map is kept, since masks are made from it.
    """
    if stream == "vision":
        return objective.image_tokens(shown).float()
    features = objective.feature_map(shown)
    if not objective.is_guided:
        features = pool_to_grid(features, objective.sight.grid)
    return map_to_cells(features).float()


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _kept_of_map(objective: FusionObjective) -> str:
    return "the whole map" if objective.is_guided else f"pooled to {objective.sight.grid} x {objective.sight.grid}"
