"""uint8 squares to what a tower reads: resized and normalised on the device, where it costs nothing worth caching."""

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def unit_pixels(pixels: Tensor, size: int | None = None) -> Tensor:
    """(B, 3, S, S) uint8 to (B, 3, size, size) float32 in [0, 1]; bicubic with antialiasing where the size differs."""
    scaled = pixels.float() / 255
    if size is None or pixels.shape[-1] == size:
        return scaled
    return F.interpolate(scaled, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def blip_pixels(pixels: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(B, 3, S, S) uint8 to BLIP's input: (B, 3, size, size), normalised with CLIP's mean and standard deviation."""
    mean = torch.tensor(CLIP_MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=pixels.device)[:, None, None]
    return ((unit_pixels(pixels, size) - mean) / std).to(dtype)
