"""What a person hands in, a photo of any kind and a question, made fit for a model or refused in one line."""

import os
import stat
import unicodedata
from pathlib import Path

from PIL import Image

from shards.errors import UserError
from shards.format.images import EXTENSIONS, UnreadableImage, as_rgb, decode_image, read_image

PHOTO_FORMATS = {**EXTENSIONS, "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
"""Pillow's name of each format that a photo may have -> extension; of several pictures the first counts."""

MAX_PHOTO_PIXELS = 120_000_000
"""The largest phone cameras have 108 million; decoded they take 0.4 GB."""


def read_photo(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photo as a person sees it: upright, RGB, what is transparent on white.

    Args:
        path: a JPEG, PNG, WebP, GIF, BMP or TIFF file, in grey, colour or CMYK, of any depth.

    Returns:
        An image in mode RGB, decoded to its last pixel.

    Raises:
        UnreadableImage: no such file, no file but a directory or a pipe, no image, more than `MAX_PHOTO_PIXELS` (told
            by the header, before anything is decoded), truncated or damaged.
    """
    path = Path(path)
    _check_is_file(path)
    return photo_in(read_image(path), path)


def photo_in(data: bytes, where: Path | str) -> Image.Image:
    """The same from the bytes of a file.

    Args:
        where: what to call it in a message.

    Raises:
        UnreadableImage: as `read_photo`.
    """
    decoded = decode_image(
        data,
        where,
        formats=PHOTO_FORMATS,
        expected="JPEG, PNG, WebP, GIF, BMP or TIFF",
        max_pixels=MAX_PHOTO_PIXELS,
    )
    try:
        return as_rgb(decoded.image)
    except ValueError as error:  # a colour space that Pillow cannot leave, such as LAB
        raise UnreadableImage(f"{where}: cannot be brought to RGB: {error}; save it as a JPEG or PNG in RGB") from None


def check_question(text: str) -> str:
    """A question fit for a tokenizer: white space of any kind, line breaks too, collapsed to single spaces, and other
    control characters removed.

    Any language and any length will do; a model cuts at its own number of tokens.

    Raises:
        UserError: nothing that can be seen is left, or a byte of the text was no UTF-8.
    """
    for place, character in enumerate(text, start=1):
        if unicodedata.category(character) == "Cs":
            raise UserError(f"question: character {place} is no text ({character!r}); write the question in UTF-8")
    spaced = " ".join(text.split())
    clean = "".join(character for character in spaced if unicodedata.category(character) != "Cc").strip()
    if not any(unicodedata.category(character)[0] not in "CZ" for character in clean):
        raise UserError('question: empty; ask about the image, such as "What color is the car?"')
    return clean


def _check_is_file(path: Path) -> None:
    """Opening a pipe would wait for its writer, and a device has no end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UnreadableImage(f"{path}: {kind}; expected an image file")
