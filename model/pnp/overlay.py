"""A picture of what a model looked at: heat and points over the image, a mask's outline, question and answer below."""

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from model.pnp.fonts import font_for

LONG_SIDE = (384, 1024)
"""Pixels: smaller images are enlarged to the first, larger ones reduced to the second."""
MIN_SIDE = 24
"""Of a very long image; it is shown less long than it is."""
MIN_STRIP_WIDTH = 320
"""Of the caption; a narrower image stands in the middle above it."""

HEAT_COLORS = ((120, 20, 90), (225, 45, 60), (250, 130, 30), (255, 240, 100))
"""From cold to hot."""
MAX_OPACITY = 0.7
OPACITY_EXPONENT = 1.5
"""Of the share of the highest heat: where there is little, the colors of the image stay true."""
OUTLINE = (0, 230, 255)
POINT_FILL, POINT_RIM = (255, 255, 255), (0, 0, 0)
STRIP, QUESTION, ANSWER = (24, 24, 28), (190, 190, 198), (255, 255, 255)
QUESTION_SIZE, ANSWER_SIZE, MARGIN = 16, 20, 10
MAX_LINES = 6
"""Of the question, and of the answer; what is longer ends in an ellipsis."""
MAX_CHARACTERS = 2_000
"""Looked at of either: more than 6 lines of 1,024 pixels hold, unless its characters have no width."""
ELLIPSIS = "…"
LONGEST_PIECE = 256
"""Characters of a word that are measured at once, so that a very long one costs no more than many words."""


def draw_overlay(
    image: Image.Image,
    heatmap: ArrayLike,
    points: Iterable[tuple[float, float]],
    mask: ArrayLike | None,
    *,
    question: str,
    answer: str,
    confidence: float | None,
) -> Image.Image:
    """The picture, for a person to look at.

    Args:
        image: of any size and mode.
        heatmap: (g, g), not negative; shown relative to its maximum, the hotter the more opaque.
        points: (x, y) in pixels of `image`, as `to_pixels` gives them.
        mask: (h, w) bool over the whole image, of any size; None draws none.
        confidence: of the answer, in [0, 1]; None leaves it out.

    Returns:
        An RGB image, wider and higher than `image` if that is small, smaller if it is large, with a strip of text
        below that is as high as the text needs, of which the first lines are shown (MAX_LINES).
    """
    size = display_size(*image.size)
    shown = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    shown = _with_heat(shown, np.nan_to_num(np.asarray(heatmap, dtype=np.float32), posinf=0.0))
    if mask is not None:
        shown = _with_outline(shown, np.asarray(mask, dtype=bool))
    scale = size[0] / image.width, size[1] / image.height
    _draw_points(ImageDraw.Draw(shown), [(x * scale[0], y * scale[1]) for x, y in points], size)
    width = max(size[0], MIN_STRIP_WIDTH)
    strip = _caption(width, question, answer if confidence is None else f"{answer} ({confidence:.0%})")
    picture = Image.new("RGB", (width, size[1] + strip.height), STRIP)
    picture.paste(shown, ((width - size[0]) // 2, 0))
    picture.paste(strip, (0, size[1]))
    return picture


def display_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which an image of this size is shown."""
    long = max(width, height)
    scale = min(max(long, LONG_SIDE[0]), LONG_SIDE[1]) / long
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def _with_heat(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    if heat.max(initial=0.0) <= 0:
        return image
    share = Image.fromarray(np.clip(heat / heat.max(), 0, 1)).resize(image.size, Image.Resampling.BILINEAR)
    level = np.asarray(share)[..., None]
    positions = np.linspace(0, 1, len(HEAT_COLORS))
    color = np.stack([np.interp(level[..., 0], positions, channel) for channel in np.array(HEAT_COLORS).T], axis=-1)
    opacity = MAX_OPACITY * level**OPACITY_EXPONENT
    mixed = np.asarray(image) * (1 - opacity) + color * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _with_outline(image: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """The outermost pixels of the mask; at the edge of the image they are its edge."""
    if not mask.size:
        return image
    inside = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST), dtype=bool)
    thickness = max(2, max(image.size) // 256)
    pixels = np.array(image)
    pixels[inside & ~binary_erosion(inside, iterations=thickness)] = OUTLINE
    return Image.fromarray(pixels)


def _draw_points(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], size: tuple[int, int]) -> None:
    radius = max(4, max(size) // 64)
    for x, y in points:
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=POINT_FILL, outline=POINT_RIM, width=max(2, radius // 3))


def _caption(width: int, question: str, answer: str) -> Image.Image:
    rows = []
    for text, size, color in ((question, QUESTION_SIZE, QUESTION), (answer, ANSWER_SIZE, ANSWER)):
        shown = text[:MAX_CHARACTERS] + (ELLIPSIS if len(text) > MAX_CHARACTERS else "")
        font = font_for(shown + ELLIPSIS, size)
        rows += [(line, font, color) for line in wrapped(shown, font, width - 2 * MARGIN, max_lines=MAX_LINES)]
    heights = [math.ceil(font.size * 1.4) for _, font, _ in rows]
    strip = Image.new("RGB", (width, sum(heights) + 2 * MARGIN), STRIP)
    draw, top = ImageDraw.Draw(strip), MARGIN
    for (line, font, color), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top), line, fill=color, font=font)
        top += height
    return strip


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float, *, max_lines: int | None = None) -> list[str]:
    """The lines of a text, none wider than `width` pixels unless a single character is; a long word is broken.

    Args:
        max_lines: where there are more, the last of so many ends in an ellipsis; None shows all.
    """
    if max_lines is None:
        return list(_lines(text, font, width))
    lines = list(islice(_lines(text, font, width), max_lines + 1))
    if len(lines) > max_lines:
        *lines, last = lines[:max_lines]
        while last and font.getlength(last + ELLIPSIS) > width:
            last = last[:-1]
        lines.append(last + ELLIPSIS)
    return lines


def _lines(text: str, font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    line = ""
    for word in _printable(text).split():
        for piece in _pieces(word, font, width):
            longer = f"{line} {piece}" if line else piece
            if line and font.getlength(longer) > width:
                yield line
                longer = piece
            line = longer
    if line:
        yield line


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    while word:
        ends = range(1, min(len(word), LONGEST_PIECE) + 1)
        fitting = bisect_right(ends, width, key=lambda end: font.getlength(word[:end]))
        yield word[: max(fitting, 1)]
        word = word[max(fitting, 1) :]


def _printable(text: str) -> str:
    """Without what a font cannot be asked for: control characters become spaces, half surrogates a question mark."""
    kinds = {"Cc": " ", "Cs": "?"}
    return "".join(kinds.get(unicodedata.category(character), character) for character in text)
