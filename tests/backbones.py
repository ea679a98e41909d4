"""Backbones of timm, one of each family, small and untrained, in directories as timm.models.save_for_hf writes them."""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

SIDE = 64


class Family(NamedTuple):
    """An architecture of timm and what makes it small."""

    name: str
    arguments: dict[str, Any]
    prefix: int = 0
    """Tokens in front of the grid."""
    grid: int = 4
    has_batch_statistics: bool = False


_VIT = {"img_size": SIDE, "depth": 2, "embed_dim": 24, "num_heads": 3}
_PATCH_14 = _VIT | {"img_size": 56}

FAMILIES = {
    "vit": Family("vit_tiny_patch16_224", _VIT, prefix=1),
    "distilled": Family("deit_tiny_distilled_patch16_224", _VIT, prefix=2),
    "registers": Family("vit_small_patch14_reg4_dinov2", _PATCH_14, prefix=5),
    "dinov2": Family("vit_small_patch14_dinov2", _PATCH_14, prefix=1),
    "dinov3": Family("vit_small_patch16_dinov3", _VIT, prefix=5),
    "siglip": Family("vit_base_patch16_siglip_384", _VIT),
    "eva02": Family("eva02_tiny_patch14_224", _PATCH_14, prefix=1),
    "convnext": Family("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}, grid=2),
    "swin": Family(
        "swin_tiny_patch4_window7_224",
        {"img_size": SIDE, "window_size": 2, "embed_dim": 6, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
        grid=2,
    ),
    "efficientnet": Family("test_efficientnet", {}, grid=2, has_batch_statistics=True),
    "hiera": Family("hiera_tiny_224", {"img_size": SIDE, "embed_dim": 6, "stages": (1, 1, 1, 1)}, grid=2),
    "sam": Family("samvit_base_patch16", _VIT | {"neck_chans": 16}),
}

TRAINABLE = [name for name, family in FAMILIES.items() if not family.has_batch_statistics]


def write_backbone(directory: Path, family: str, *, seed: int = 0, **changes: Any) -> str:
    """The directory of an untrained backbone whose features tell images apart; gives its reference.

    Args:
        changes: of what timm says that it reads (`mean`, `std`, `interpolation`, `input_size`).
    """
    torch.manual_seed(seed)
    name, arguments = FAMILIES[family][:2]
    model = timm.create_model(name, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    side = arguments.get("img_size", SIDE)
    config = {"input_size": (3, side, side)} | changes
    timm.models.save_for_hf(model, str(directory), safe_serialization=True, data_config=config)
    return f"timm:{directory}"
