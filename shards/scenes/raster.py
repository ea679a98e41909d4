"""A scene as pixels and as a PNG file: integer arithmetic only, so the bytes are the same on every machine."""

import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shards.format.records import Box
from shards.scenes.world import IMAGE_SIZE, SIZES, Rgb, Scene, Thing


@cache
def shape_mask(shape: str, half: int) -> NDArray[np.bool_]:
    """Which pixels around its centre a shape covers: (2h + 1, 2h + 1), h half of its extent."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    wide, high = np.abs(x), np.abs(y)
    disk = x * x + y * y <= half * (half + 1)
    masks = {
        "circle": disk,
        "square": 8 * np.maximum(wide, high) <= 7 * half,
        "triangle": (2 * wide <= y + half) & (5 * y <= 4 * half),
        "cross": 10 * np.minimum(wide, high) <= 3 * half,
        "ring": disk & (3 * (x * x + y * y) >= half * half),
        "moon": disk & ((2 * x - half) ** 2 + 4 * y * y > 3 * half * half),
    }
    return masks[shape]


def bounding_box(thing: Thing) -> Box:
    """x, y, width, height of the pixels that a thing covers."""
    half = SIZES[thing.size]
    mask = shape_mask(thing.shape, half)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, top = int(columns[0]), int(rows[0])
    x, y = thing.center
    return x - half + left, y - half + top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def paint(scene: Scene) -> NDArray[np.uint8]:
    """The picture: (IMAGE_SIZE, IMAGE_SIZE, 3), RGB."""
    pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    pixels[:] = scene.sky
    for thing in scene.things:
        stamp(pixels, thing.shape, SIZES[thing.size], thing.center, thing.rgb)
    return pixels


def stamp(pixels: NDArray[np.uint8], shape: str, half: int, center: tuple[int, int], rgb: Rgb) -> None:
    """Paint a shape over a picture (height, width, 3)."""
    x, y = center
    pixels[y - half : y + half + 1, x - half : x + half + 1][shape_mask(shape, half)] = rgb


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of (height, width, 3) pixels, stored without compression.

    Compressed bytes differ between versions of zlib, stored ones do not; a 64 x 64 picture takes 12 KB.
    Source: PNG (third edition), sections 5 and 10, and RFC 1950 and 1951 (one stored block).
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + width * 3), np.uint8)  # each row opens with its filter type: 0, none
    rows[:, 1:] = pixels.reshape(height, width * 3)
    data = rows.tobytes()
    assert len(data) < 2**16, "one stored block holds 65,535 bytes"
    block = struct.pack("<BHH", 1, len(data), len(data) ^ 0xFFFF) + data
    stream = b"\x78\x01" + block + struct.pack(">I", zlib.adler32(data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
