"""Where the objects of GQA's images are, in parts of the image, from its scene graphs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from shards.annotations.json_blocks import iterate_object

Advance = Callable[[int], object]
"""Told the number of bytes read since the last call."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in parts of the image."""

Scenes = Mapping[str, Mapping[str, Box]]
"""Image id -> object id -> box."""

WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)


class _Object(msgspec.Struct, gc=False):
    x: float
    y: float
    w: float
    h: float


_Length = Annotated[float, msgspec.Meta(gt=0)]


class _Scene(msgspec.Struct):
    width: _Length
    height: _Length
    objects: dict[str, _Object] = {}


def read_scenes(path: Path, advance: Advance) -> Scenes:
    """Read GQA's scene graphs; boxes are divided by the width and height of their image.

    Raises:
        DataError: broken JSON (byte offset), or a scene without its size or a box (image id).
    """
    return {
        image_id: {name: _box(thing, scene) for name, thing in scene.objects.items()}
        for block in iterate_object(path, _Scene, advance)
        for image_id, scene in block.items()
    }


def _box(thing: _Object, scene: _Scene) -> Box:
    x0, y0 = thing.x / scene.width, thing.y / scene.height
    return x0, y0, (thing.x + thing.w) / scene.width, (thing.y + thing.h) / scene.height
