"""What is in a rendered scene: a pure function of (seed, image number), with no generator between the images."""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

IMAGE_SIZE = 64
CELL_SIZE = 32
"""Things stand in a grid of 2 x 2 cells, so "left of" and "above" are never a matter of a pixel."""
MAX_SHIFT = 1
"""A thing stands at most this many pixels off the centre of its cell, each way."""
RGB_SPREAD = 8
"""Each channel varies by at most this much from image to image: one color name, no two equal pictures."""

Rgb = tuple[int, int, int]
Cell = tuple[int, int]
"""Column and row."""

CELLS: tuple[Cell, ...] = ((0, 0), (1, 0), (0, 1), (1, 1))

SHAPES = ("circle", "square", "triangle", "cross", "ring", "moon")
COLORS: dict[str, Rgb] = {
    "red": (220, 35, 35),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "purple": (150, 40, 190),
    "orange": (245, 140, 20),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
SIZES: dict[str, int] = {"large": 13, "small": 8}
"""Half of the extent in pixels: a thing covers 2 * half + 1 pixels each way at most."""
SKIES: dict[str, Rgb] = {"sunny": (150, 205, 245), "cloudy": (115, 118, 124)}

SPLITS = ("backbone", "train", "val", "testdev")
_SPLIT_CYCLE = tuple(
    {"b": "backbone", "t": "train", "v": "val", "d": "testdev"}[c] for c in "btvdbtbtbtbtdbtbvbtbtbdbt"
)
MIN_IMAGES = len(SPLITS)
"""The first images of the cycle are one of each split: fewer would leave a split empty."""

_PART_CYCLE = "0120000200010000200000200"

Option = TypeVar("Option")


class Dice(NamedTuple):
    """Choices by hash of (seed, image number, purpose): each is independent of how many others were made before."""

    seed: int
    image: int

    def number(self, *purpose: str | int) -> int:
        """64 bits that belong to this purpose."""
        text = "/".join(map(str, (self.seed, self.image, *purpose)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def pick(self, options: Sequence[Option], *purpose: str | int) -> Option:
        """One of the options, each equally likely."""
        return options[self.number(*purpose) % len(options)]

    def shuffle(self, options: Sequence[Option], *purpose: str | int) -> list[Option]:
        """All options in an order of their own."""
        order = sorted(range(len(options)), key=lambda place: self.number(*purpose, place))
        return [options[place] for place in order]

    def shuffle_by_rank(self, options: Sequence[Option], *purpose: str | int) -> list[Option]:
        """All options in an order of their own; the chance of the nth to be first is proportional to 1 / (n + 1)."""
        # Exponential clocks that run at these rates: who rings first is drawn by rate.
        rings = [-math.log((self.number(*purpose, place) + 1) / 2**64) * (place + 2) for place in range(len(options))]
        return [options[place] for place in sorted(range(len(options)), key=rings.__getitem__)]


class Thing(NamedTuple):
    """One coloured shape; no other thing of the scene has the same shape or stands in the same cell."""

    object_id: str
    shape: str
    color: str
    size: str
    column: int
    row: int
    center: tuple[int, int]
    """x, y in pixels."""
    rgb: Rgb
    """What is painted: the named color, varied a little."""

    @property
    def side(self) -> str:
        return ("left", "right")[self.column]

    @property
    def height(self) -> str:
        return ("top", "bottom")[self.row]


class Scene(NamedTuple):
    """One picture: one or two things under a sky."""

    image_id: str
    weather: str
    sky: Rgb
    things: tuple[Thing, ...]


def split_of(image: int) -> str:
    """The split of an image number: 44 % backbone, 36 % train, 8 % val, 12 % testdev, whatever the number of images."""
    return _SPLIT_CYCLE[image % len(_SPLIT_CYCLE)]


def part_of(number: int) -> int:
    """Training, validation or test part, 0 to 2, of what is numbered otherwise: 76 %, 8 % and 16 %."""
    return int(_PART_CYCLE[number % len(_PART_CYCLE)])


def scene(seed: int, image: int) -> Scene:
    """The scene of an image number; of two things, half have the same color.

    Shapes and colors are as unevenly frequent as words are: a guess is right more often than the answer of another
    picture would be, so that who answers with the wrong picture does not pass for somebody who guesses well.
    """
    dice = Dice(seed, image)
    image_id = f"{image:07d}"
    shapes = dice.shuffle_by_rank(SHAPES, "shapes")
    cells = dice.shuffle(CELLS, "cells")
    things = tuple(
        put(dice, number, f"{image_id}{number}", shapes[number], color, cells[number])
        for number, color in enumerate(_colors(dice))
    )
    return under_sky(dice, image_id, things)


def under_sky(dice: Dice, image_id: str, things: tuple[Thing, ...]) -> Scene:
    """The scene of these things."""
    weather = dice.pick(tuple(SKIES), "weather")
    return Scene(image_id, weather, varied(dice, SKIES[weather], "sky"), things)


def _colors(dice: Dice) -> list[str]:
    """The color of each thing; three pictures in five show one thing only, which a small model learns from first."""
    first, second = dice.shuffle_by_rank(tuple(COLORS), "colors")[:2]
    if dice.pick((True, True, True, False, False), "alone"):
        return [first]
    return [first, dice.pick((first, second), "same color")]


def put(dice: Dice, number: int, object_id: str, shape: str, color: str, cell: Cell) -> Thing:
    """A thing of a scene; its size, the shade of its color and where it stands in its cell are its own."""
    shifts = range(-MAX_SHIFT, MAX_SHIFT + 1)
    column, row = cell
    center = (
        column * CELL_SIZE + CELL_SIZE // 2 + dice.pick(shifts, "x", number),
        row * CELL_SIZE + CELL_SIZE // 2 + dice.pick(shifts, "y", number),
    )
    size = dice.pick(tuple(SIZES), "size", number)
    return Thing(object_id, shape, color, size, column, row, center, varied(dice, COLORS[color], f"color {number}"))


def varied(dice: Dice, rgb: Rgb, purpose: str) -> Rgb:
    """A shade of a color that belongs to this purpose."""
    spread = range(-RGB_SPREAD, RGB_SPREAD + 1)
    red, green, blue = (min(255, max(0, value + dice.pick(spread, purpose, i))) for i, value in enumerate(rgb))
    return red, green, blue
