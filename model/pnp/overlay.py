"""A picture of what a model looked at: heat, points and a mask's outline over the image in grey, beside the image as it
is; below them the scale of the heat, question and answer."""

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
from model.pnp.heat_colors import heat_colors

LONG_SIDE = (384, 1024)
"""Pixels: smaller images are enlarged to the first, larger ones reduced to the second."""
MIN_SIDE = 24
"""Of a very long image; it is shown less long than it is."""
MIN_STRIP_WIDTH = 320
"""Of the caption; a narrower image stands in the middle above it."""

GREYS = (40.0, 0.6)
"""Under heat an image is grey, so that no color of its own passes for heat: offset, and factor."""
MAX_OPACITY = 0.75
"""Of the highest heat; less heat is the more transparent the less it is."""
STRONG = 0.5
"""Of the highest heat: a point on less would look as if the model had looked there."""
OUTLINE = (0, 230, 255)
POINT_FILL, POINT_RIM = (255, 255, 255), (0, 0, 0)
STRIP, QUESTION, ANSWER, NOTE = (24, 24, 28), (190, 190, 198), (255, 255, 255), (255, 196, 84)
QUESTION_SIZE, ANSWER_SIZE, LEGEND_SIZE, MARGIN = 16, 20, 12, 10
GAP = 8
"""Between the two images."""
LEGEND = ("no heat", "most heat")
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
    notes: Sequence[str] = (),
) -> Image.Image:
    """The picture, for a person to look at.

    Args:
        image: of any size and mode.
        heatmap: (g, g), not negative; shown relative to its maximum, the hotter the more opaque.
        points: (x, y) in pixels of `image`, as `to_pixels` gives them, the hottest first: those on strong heat are
            drawn, with their numbers in this order.
        mask: (h, w) bool over the whole image, of any size; None draws none.
        confidence: of the answer, in [0, 1]; None leaves it out.
        notes: what one should know of the answer; each is a line or more below it.

    Returns:
        An RGB image: left the image with what was found, right the image as it is, both as large as `display_size`
        says. A strip of text below is as high as the text needs, of which the first lines are shown (MAX_LINES).
    """
    size = display_size(*image.size)
    plain = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    level = _level(np.nan_to_num(np.asarray(heatmap, dtype=np.float32), posinf=0.0), size)
    shown = plain if level is None else _with_heat(plain, level)
    if mask is not None:
        shown = _with_outline(shown, np.asarray(mask, dtype=bool))
    if level is not None:
        scale = size[0] / image.width, size[1] / image.height
        _draw_points(shown, [(x * scale[0], y * scale[1]) for x, y in points], level)
    width = max(2 * size[0] + GAP, MIN_STRIP_WIDTH)
    said = answer if confidence is None else f"{answer} ({confidence:.0%})"
    strip = _caption(width, question, said, notes, legend=level is not None)
    picture = Image.new("RGB", (width, size[1] + strip.height), STRIP)
    left = (width - 2 * size[0] - GAP) // 2
    picture.paste(shown, (left, 0))
    picture.paste(plain, (left + size[0] + GAP, 0))
    picture.paste(strip, (0, size[1]))
    return picture


def display_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which an image of this size is shown."""
    long = max(width, height)
    scale = min(max(long, LONG_SIDE[0]), LONG_SIDE[1]) / long
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def muted(image: Image.Image) -> NDArray[np.float64]:
    """(H, W, 3) what is under the heat: an RGB image in grey, its extremes cut."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    return np.repeat(GREYS[0] + GREYS[1] * grey, 3, axis=-1)


def _level(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32] | None:
    """(H, W) heat at each pixel as a part of the highest; None where there is none."""
    if heat.max(initial=0.0) <= 0:
        return None
    share = Image.fromarray(np.clip(heat / heat.max(), 0, 1)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(share)


def _with_heat(image: Image.Image, level: NDArray[np.float32]) -> Image.Image:
    opacity = MAX_OPACITY * level[..., None]
    mixed = muted(image) * (1 - opacity) + heat_colors(level) * opacity
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


def point_radius(size: tuple[int, int]) -> int:
    """Pixels, in an image that is shown at this size: a number of one digit fits."""
    return max(8, max(size) // 64)


def _draw_points(image: Image.Image, points: Sequence[tuple[float, float]], level: NDArray[np.float32]) -> None:
    """Draws into the image; the hottest last, above the others."""
    draw, radius = ImageDraw.Draw(image), point_radius(image.size)
    height, width = level.shape
    strong = [
        (x, y) for x, y in points if level[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)] >= STRONG
    ]
    font = ImageFont.load_default(size=round(1.4 * radius))
    for number, (x, y) in reversed(list(enumerate(strong, start=1))):
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=POINT_FILL, outline=POINT_RIM, width=max(2, radius // 6))
        draw.text((x, y), str(number), fill=POINT_RIM, font=font, anchor="mm")


def _caption(width: int, question: str, answer: str, notes: Sequence[str], *, legend: bool) -> Image.Image:
    rows = []
    texts = ((question, QUESTION_SIZE, QUESTION), (answer, ANSWER_SIZE, ANSWER))
    for text, size, color in (*texts, *((note, QUESTION_SIZE, NOTE) for note in notes)):
        shown = text[:MAX_CHARACTERS] + (ELLIPSIS if len(text) > MAX_CHARACTERS else "")
        font = font_for(shown + ELLIPSIS, size)
        rows += [(line, font, color) for line in wrapped(shown, font, width - 2 * MARGIN, max_lines=MAX_LINES)]
    heights = [math.ceil(font.size * 1.4) for _, font, _ in rows]
    top = MARGIN + (2 * LEGEND_SIZE if legend else 0)
    strip = Image.new("RGB", (width, sum(heights) + top + MARGIN), STRIP)
    draw = ImageDraw.Draw(strip)
    if legend:
        _draw_legend(strip, draw)
    for (line, font, color), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top), line, fill=color, font=font)
        top += height
    return strip


def _draw_legend(strip: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    """The scale between its two words, over grey of a medium image as the heat is."""
    font = ImageFont.load_default(size=LEGEND_SIZE)
    first, last = (math.ceil(font.getlength(word)) for word in LEGEND)
    level = np.linspace(0, 1, strip.width - 4 * MARGIN - first - last, dtype=np.float32)
    scale = _with_heat(Image.new("RGB", (len(level), LEGEND_SIZE), (128, 128, 128)), np.tile(level, (LEGEND_SIZE, 1)))
    strip.paste(scale, (2 * MARGIN + first, MARGIN))
    for word, left in zip(LEGEND, (MARGIN, strip.width - MARGIN - last), strict=True):
        draw.text((left, MARGIN + LEGEND_SIZE // 2), word, fill=QUESTION, font=font, anchor="lm")


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
