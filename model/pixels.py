"""uint8 squares to what a tower reads: resized and normalised on the device, where it costs nothing worth caching."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Interpolation = Literal["bicubic", "bilinear"]


class Reads(NamedTuple):
    """What pixels a tower reads."""

    size: int
    """Side in pixels."""
    mean: tuple[float, ...]
    """Of each channel, in [0, 1]."""
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"

    def __str__(self) -> str:
        numbers = (f"{name} {'/'.join(f'{value:.6g}' for value in getattr(self, name))}" for name in ("mean", "std"))
        return ", ".join([*numbers, self.interpolation])

    def pixels(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, 3, S, S) uint8 to (B, 3, size, size): the whole square, resized and normalised in fp32, then cast."""
        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        return ((unit_pixels(pixels, self.size, self.interpolation) - mean) / std).to(dtype)


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(channels, 1, 1), filled where it is: a tensor of Python's numbers would be copied to a GPU, which waits."""
    return torch.cat([torch.full((1, 1, 1), value, device=device) for value in values])


def unit_pixels(pixels: Tensor, size: int | None = None, interpolation: Interpolation = "bicubic") -> Tensor:
    """(B, 3, S, S) uint8 to (B, 3, size, size) float32 in [0, 1]; with antialiasing where the size differs."""
    scaled = pixels.float() / 255
    if size is None or pixels.shape[-1] == size:
        return scaled
    return F.interpolate(scaled, size=(size, size), mode=interpolation, antialias=True, align_corners=False).clamp(0, 1)


def blip_reads(size: int) -> Reads:
    """BLIP's input: normalised with CLIP's mean and standard deviation."""
    return Reads(size, CLIP_MEAN, CLIP_STD)


def blip_pixels(pixels: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(B, 3, S, S) uint8 to BLIP's input: (B, 3, size, size), normalised with CLIP's mean and standard deviation."""
    return blip_reads(size).pixels(pixels, dtype)
