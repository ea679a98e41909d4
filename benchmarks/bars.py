"""A table of percents as groups of bars, drawn with Pillow."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from shards.atomic import write_atomically

HEIGHT, BAR, GAP, MARGIN = 260, 26, 34, 60
COLORS = ("#9aa5b1", "#5f7a94", "#e0a458", "#c8553d", "#2a6f4e", "#6a4c93")


def draw_bars(path: Path, table: Mapping[str, Mapping[str, float]]) -> None:
    """Write a PNG with one group of bars for each column of a table, and one bar in it for each row.

    Args:
        table: row -> column -> percent; all rows have the same columns.
    """
    rows, columns = list(table), list(next(iter(table.values())))
    group = len(rows) * BAR + GAP
    width, legend = 2 * MARGIN + group * len(columns), 24 * len(rows)
    image = Image.new("RGB", (width, HEIGHT + 2 * MARGIN + legend), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    base = MARGIN + HEIGHT
    for percent in range(0, 101, 25):
        y = base - HEIGHT * percent // 100
        draw.line((MARGIN, y, width - MARGIN, y), fill="#dddddd")
        draw.text((MARGIN - 8, y), f"{percent} %", fill="black", font=font, anchor="rm")
    for place, column in enumerate(columns):
        left = MARGIN + GAP // 2 + place * group
        for number, row in enumerate(rows):
            top = base - round(HEIGHT * table[row][column] / 100)
            x = left + number * BAR
            draw.rectangle((x, top, x + BAR - 4, base), fill=COLORS[number % len(COLORS)])
            draw.text((x + BAR // 2 - 2, top - 3), f"{table[row][column]:.0f}", fill="black", font=font, anchor="mb")
        draw.text((left + len(rows) * BAR // 2, base + 8), column, fill="black", font=font, anchor="mt")
    for number, row in enumerate(rows):
        y = base + MARGIN // 2 + 24 * number
        draw.rectangle((MARGIN, y, MARGIN + 14, y + 14), fill=COLORS[number % len(COLORS)])
        draw.text((MARGIN + 22, y), row, fill="black", font=font)
    write_atomically(path, _png(image))


def _png(image: Image.Image) -> bytes:
    target = BytesIO()
    image.save(target, "PNG")
    return target.getvalue()
