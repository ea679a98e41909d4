"""Image files found, decoded in full and, if asked, made smaller: what is packed can be decoded later."""

import io
import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image, ImageOps

from shards.errors import DataError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Pillow's name of each format that is let in -> the extension of its member in a shard."""

MAX_PIXELS = 25_000_000
"""Read from the header before anything is decoded: a few bytes can announce gigabytes."""

MAX_BYTES = 256 << 20
JPEG_QUALITY = 95


class MissingImage(DataError):
    """The image directory has no such file."""


class UnreadableImage(DataError):
    """The file is there, but it is no whole JPEG, PNG or WebP of a sane size."""


class Decoded(NamedTuple):
    """An image that was decoded to its last pixel; turned upright, if its EXIF data says how it was held."""

    image: Image.Image
    extension: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        return self.image.size


def find_image(directory: Path, ref: str, endings: tuple[str, ...]) -> Path:
    """The file that an annotation means: the first of `ref` + ending that exists.

    Raises:
        DataError: `ref` leads out of the directory.
        MissingImage: there is no such file.
    """
    parts = PurePosixPath(ref)
    if not ref or "\0" in ref or parts.is_absolute() or ".." in parts.parts:
        raise DataError(f"image {ref!r}: leads out of the image directory {directory}; expected a path inside it")
    for ending in endings:
        path = directory / (ref + ending)
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode):
            return path
    tried = ref + (f"{{{','.join(endings)}}}" if len(endings) > 1 else endings[0])
    raise MissingImage(f"{directory}: no image {tried}")


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImage: it cannot be read, or is larger than any sane image.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise UnreadableImage(f"{path}: {size} bytes; expected an image of at most {MAX_BYTES}")
            return file.read()
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot be read: {error.strerror}") from None


def decode_image(
    data: bytes,
    where: str | Path,
    *,
    formats: Mapping[str, str] = EXTENSIONS,
    expected: str = "JPEG, PNG or WebP",
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """Decode an image in full.

    Args:
        data: the content of an image file.
        where: what to call it in a message.
        formats: Pillow's names of the formats that are let in -> extension.
        expected: the same in words.
        max_pixels: more than these are not decoded.

    Raises:
        UnreadableImage: another format, too many pixels, truncated or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF data; a large header is judged below
            image = Image.open(io.BytesIO(data), formats=tuple(formats))
            # MPO is a JPEG with further pictures behind it, as many phones write them; the first one counts.
            extension = formats["JPEG" if image.format == "MPO" else image.format]
            if image.width * image.height <= max_pixels:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)  # the other way copies an image that stands upright
                return Decoded(image, extension)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{where}: {error}") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage(f"{where}: not a {expected} image, or its header is damaged") from None
    except Exception as error:  # Pillow's plugins let through whatever struct, zlib or a codec raised
        raise UnreadableImage(f"{where}: cannot be decoded: {error}") from None
    raise UnreadableImage(
        f"{where}: {image.width} x {image.height} pixels; expected at most {max_pixels} (a larger one may be a trap)"
    )


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB as a person sees it on white paper.

    What is transparent becomes white: the colours below it were never meant to be seen. 16 bits of grey become 8 by
    their upper ones, where Pillow would cut at 255; numbers without a range (modes I and F) are stretched to the full
    one.
    """
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    elif image.mode in ("I", "F"):
        low, high = image.getextrema()
        scale = 255 / (high - low) if high > low else 0.0
        image = image.point(lambda value: value * scale + -low * scale).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) after bringing the short side down to `short_side`; never larger than before."""
    short = min(width, height)
    if short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def shrink(decoded: Decoded, short_side: int) -> bytes | None:
    """The image as JPEG with its short side brought down to `short_side`; None if it is not longer than that."""
    size = resized_size(*decoded.size, short_side)
    if size == decoded.size:
        return None
    smaller = as_rgb(decoded.image).resize(size, Image.Resampling.BICUBIC)
    target = io.BytesIO()
    smaller.save(target, "JPEG", quality=JPEG_QUALITY)
    return target.getvalue()
