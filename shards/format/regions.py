"""Regions of an image as a detector found them: the member KEY.regions.safetensors of a shard.

Shapes: R regions, F numbers of a feature.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shards.format.images import UnreadableImage
from shards.format.index import RegionShape

EXTENSION = "regions.safetensors"


class Regions(NamedTuple):
    """The regions of one image, in the order of the detector."""

    size: NDArray[np.int64]
    """(2,) width and height of the image in pixels."""
    boxes: NDArray[np.float32]
    """(R, 4) left, top, right, bottom in pixels."""
    features: NDArray[np.float32]
    """(R, F)"""
    objects_id: NDArray[np.int64]
    """(R,) class of the thing, as the detector numbers them."""
    objects_conf: NDArray[np.float32]
    """(R,) how sure it is of that."""
    attrs_id: NDArray[np.int64]
    """(R,) its attribute."""
    attrs_conf: NDArray[np.float32]
    """(R,)"""

    @property
    def shape(self) -> RegionShape:
        return RegionShape(count=self.features.shape[0], width=self.features.shape[1])

    def unit_boxes(self) -> NDArray[np.float32]:
        """(R, 4) boxes in parts of the image's width and height."""
        return self.boxes / np.tile(self.size, 2).astype(np.float32)

    def encode(self) -> bytes:
        """The content of the member: the same regions always give the same bytes."""
        return save({name: np.ascontiguousarray(value) for name, value in self._asdict().items()})


_KINDS = {"size": "int64", "objects_id": "int64", "attrs_id": "int64"}


def decode_regions(data: bytes, where: str) -> Regions:
    """The inverse of `Regions.encode`; `where` is for messages.

    Raises:
        UnreadableImage: these are no regions, or damaged ones.
    """
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UnreadableImage(f"{where}: not regions, or damaged: {error}") from None
    features = found.get("features", np.zeros(0))
    count = len(features)
    shapes = {"size": (2,), "boxes": (count, 4), "features": (count, *features.shape[1:2])}
    for name in Regions._fields:
        expected = shapes.get(name, (count,))
        kind = _KINDS.get(name, "float32")
        value = found.get(name)
        if value is None or value.shape != expected or value.dtype != kind or not count:
            said = "missing" if value is None else f"{value.dtype} {value.shape}"
            raise UnreadableImage(f"{where}: {name}: {said}; expected {kind} {expected}, one row for each region")
    return Regions(**{name: found[name] for name in Regions._fields})
