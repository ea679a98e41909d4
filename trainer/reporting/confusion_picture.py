"""A confusion as a picture: a row for each right answer, a column for what was said."""

import numpy as np
from PIL import Image, ImageDraw

from model.pnp.fonts import font_for
from model.pnp.heat_colors import heat_colors
from trainer.scoring.confusion import Confusion

CELL, LABEL, MARGIN, TEXT = 56, 132, 12, 13
PAPER, INK = (250, 250, 252), (24, 24, 28)
_LETTERS = 15
"""Of an answer; what is longer ends in an ellipsis."""


def confusion_picture(confusion: Confusion) -> Image.Image:
    """An RGB image: counts on the share of the row, from light (none) to dark (all)."""
    names = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in confusion.shown]
    side = len(names) * CELL
    picture = Image.new("RGB", (LABEL + side + MARGIN, LABEL + side + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    shares = confusion.counts / np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    draw.text((MARGIN, MARGIN), "right answer ↓   said →", INK, font_for("↓→", TEXT))
    for row, name in enumerate(names):
        _label(picture, name, row)
        for column in range(len(names)):
            left, top = LABEL + column * CELL, LABEL + row * CELL
            share = shares[row, column]
            # The way of the colors is from dark to light; here paper stands for nothing.
            color = PAPER if share == 0 else tuple(round(float(part)) for part in heat_colors(0.95 * (1 - share)))
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), color)
            count = confusion.counts[row, column]
            if count:
                word, ink = f"{count:,}", PAPER if share > 0.45 else INK
                draw.text((left + CELL / 2, top + CELL / 2), word, ink, font_for(word, TEXT), anchor="mm")
    return picture


def _label(picture: Image.Image, name: str, number: int) -> None:
    """The name of a row, and of the column of the same number, from below upwards."""
    font, middle = font_for(name, TEXT), LABEL + (number + 0.5) * CELL
    ImageDraw.Draw(picture).text((LABEL - 8, middle), name, INK, font, anchor="rm")
    upright = Image.new("RGB", (LABEL - 8, CELL), PAPER)
    ImageDraw.Draw(upright).text((0, CELL / 2), name, INK, font, anchor="lm")
    picture.paste(upright.rotate(90, expand=True), (LABEL + number * CELL, 0))
