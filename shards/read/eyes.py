"""An image of a shard as a model is shown it: a square of pixels, or the regions that a detector saw."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from msgspec import UNSET
from PIL import Image
from torch import Tensor

from shards.format.images import UnreadableImage, as_rgb, decode_image
from shards.format.index import RegionShape, SplitIndex
from shards.format.regions import decode_regions
from shards.read.collate import SeenRegions, Shown

Augment = Callable[[Image.Image], Image.Image]
"""An RGB picture to one that may stand for it in training."""


class Eyes(Protocol):
    """How the images of a split are seen."""

    @property
    def blank(self) -> Shown:
        """An image on which there is nothing."""
        ...

    def see(self, data: bytes, where: str, augment: Augment | None = None) -> Shown:
        """A packed image.

        Args:
            where: what to call the image in a message.
            augment: changes a picture while it has its own size and shape.

        Raises:
            UnreadableImage: it is none, or damaged.
        """
        ...


class SquareEyes:
    """Pixels as squares of one size."""

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def blank(self) -> Tensor:
        """Black."""
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8)

    def see(self, data: bytes, where: str, augment: Augment | None = None) -> Tensor:
        """See `square_pixels`."""
        return square_pixels(data, self.size, where, augment)


class RegionEyes:
    """The regions of a detector, of one shape."""

    def __init__(self, shape: RegionShape) -> None:
        self.shape = shape

    @property
    def blank(self) -> SeenRegions:
        """Features and boxes of 0."""
        return SeenRegions(torch.zeros(self.shape.count, self.shape.width), torch.zeros(self.shape.count, 4))

    def see(self, data: bytes, where: str, augment: Augment | None = None) -> SeenRegions:
        """Features (R, F), and boxes (R, 4) in parts of the image."""
        assert augment is None, "a recipe that changes pictures over regions is refused"
        regions = decode_regions(data, where)
        if regions.shape != self.shape:
            raise UnreadableImage(f"{where}: {regions.shape}; expected {self.shape}")
        return SeenRegions(torch.tensor(regions.features), torch.tensor(regions.unit_boxes()))


def eyes_for(index: SplitIndex, image_size: int | None) -> Eyes:
    """How the images of a split are seen; `image_size` is the side of squares in pixels, and nothing to regions."""
    if index.regions is not UNSET:
        return RegionEyes(index.regions)
    assert image_size is not None, "what reads pixels has a size"
    return SquareEyes(image_size)


def square_pixels(data: bytes, size: int, where: str, augment: Augment | None = None) -> Tensor:
    """An encoded image as (3, size, size) uint8: upright, RGB, resized bicubically without keeping the aspect ratio.

    That is BLIP's evaluation transform (Resize((s, s), BICUBIC)); the towers normalise on the device. It lies in memory
    as Pillow has it, colours innermost: a batch of them is brought into order in one copy.

    Args:
        where: what to call the image in a message.
        augment: changes the image while it has its own size and shape.

    Raises:
        UnreadableImage: not a JPEG, PNG or WebP image of a sane size, or damaged.
    """
    image = decode_image(data, where).image
    return _square(image if augment is None else augment(as_rgb(image)), size)


def square_image(image: Image.Image, size: int) -> Tensor:
    """A decoded image as (3, size, size) uint8, in RGB on white."""
    return _square(image, size).contiguous()


def _square(image: Image.Image, size: int) -> Tensor:
    image = as_rgb(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
