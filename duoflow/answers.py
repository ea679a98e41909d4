"""What a model says and where it looked, as a person or a program takes it.

Shapes: H x W the photo, g cells on a side of the heatmap, P points.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.looking.points import to_pixels
from shards.errors import ConfigError
from shards.read.photo import read_photo

if TYPE_CHECKING:
    from model.looking.guidance import Look

ImageLike = str | os.PathLike[str] | Image.Image
"""A photo: a file of any format that a camera or a browser writes, or an image of Pillow's."""


class Alternative(NamedTuple):
    """Another answer than the one that was given."""

    text: str
    probability: float
    """Of the whole text, by the model."""


class Looked(NamedTuple):
    """Where a model looked in a photo."""

    heatmap: NDArray[np.float32]
    """(g, g), not negative: how much each cell mattered, after the mask."""
    points: NDArray[np.float64]
    """(P, 2): (x, y) in pixels of the photo, the hottest first; none where the heat points nowhere."""
    mask: NDArray[np.bool_] | None
    """(H, W): what EfficientSAM finds at the points; None without its weights, or without points."""


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer. What it costs more to know is computed when it is asked for, once."""

    question: str
    text: str
    probability: float
    """That the model gives the whole answer, its end included; of a class, that of the class."""
    captions: tuple[str, ...] = ()
    """Of PNP-VQA: what the answer was read from."""
    photos: tuple[ImageLike, ...] = field(default=(), repr=False)
    look_for: "Callable[[Answer], Look] | None" = field(default=None, repr=False)
    """Where the model looks for it; None of an answer that no model gave."""
    others_than: "Callable[[Answer], tuple[Alternative, ...]] | None" = field(default=None, repr=False)
    doubts_of: "Callable[[Answer], tuple[str, ...]] | None" = field(default=None, repr=False)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What one should know before believing it: words that the model does not know, and whether it says the same
        without the photo. PNP-VQA's answers and those about documents have none."""
        return () if self.doubts_of is None or self.captions else self.doubts_of(self)

    @property
    def heatmap(self) -> NDArray[np.float32]:
        """(g, g): see `Looked.heatmap`."""
        return self.looked.heatmap

    @property
    def points(self) -> NDArray[np.float64]:
        """(P, 2): see `Looked.points`."""
        return self.looked.points

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(H, W): see `Looked.mask`."""
        return self.looked.mask

    @cached_property
    def looked(self) -> Looked:
        """Where the question with this answer looks.

        Raises:
            ConfigError: the run trained nothing that this can be read from, or the question is about several photos.
        """
        return looked(self.found, self.photo.size)

    @cached_property
    def found(self) -> "Look":
        """The same as the model gives it, for an overlay."""
        if self.look_for is None:
            raise ConfigError("this answer is not about a photo, so there is nothing to look at")
        return self.look_for(self)

    @property
    def photo(self) -> Image.Image:
        """The photo that it is about, in RGB.

        Raises:
            ConfigError: it is about several.
        """
        if len(self.photos) != 1:
            raise ConfigError(
                f"an answer about {len(self.photos)} photos: where it looked is had of a single one alone"
            )
        return as_photo(self.photos[0])

    @cached_property
    def alternatives(self) -> tuple[Alternative, ...]:
        """At most five other answers, the most likely first.

        Raises:
            ConfigError: the model gives none.
        """
        if self.others_than is None:
            raise ConfigError("this answer is not about a photo, so there are no alternatives to it")
        return self.others_than(self)


def as_photo(image: ImageLike) -> Image.Image:
    """An image in RGB, upright.

    Raises:
        UserError: no such file, or no image.
    """
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    return read_photo(image)


def looked(found: "Look", size: tuple[int, int]) -> Looked:
    """What was found for a single question, in the pixels of its photo.

    Args:
        size: (W, H).
    """
    heatmap, (points,) = found.refined[0].numpy(), found.points
    mask = None
    if found.masks is not None and points:
        small = Image.fromarray((found.masks[0].numpy() >= 0.5).astype(np.uint8))
        mask = np.asarray(small.resize(size, Image.Resampling.NEAREST)).astype(bool)
    return Looked(heatmap, to_pixels(points, heatmap.shape[-1], size).reshape(-1, 2), mask)
