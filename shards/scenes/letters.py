"""Capitals and digits as pixels: the same on every machine, whatever fonts it has."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

HEIGHT = 7
WIDTH = 5
GAP = 1
"""Columns between two letters."""

_GLYPHS = {
    " ": "00000000000000",
    "A": "0e11111f111111",
    "B": "1e11111e11111e",
    "C": "0e11101010110e",
    "D": "1e11111111111e",
    "E": "1f10101e10101f",
    "F": "1f10101e101010",
    "G": "0e11101711110f",
    "H": "1111111f111111",
    "I": "0e04040404040e",
    "J": "0702020202120c",
    "K": "11121418141211",
    "L": "1010101010101f",
    "M": "111b1515111111",
    "N": "11111915131111",
    "O": "0e11111111110e",
    "P": "1e11111e101010",
    "Q": "0e11111115120d",
    "R": "1e11111e141211",
    "S": "0f10100e01011e",
    "T": "1f040404040404",
    "U": "1111111111110e",
    "V": "11111111110a04",
    "W": "11111115151b11",
    "X": "11110a040a1111",
    "Y": "11110a04040404",
    "Z": "1f01020408101f",
    "0": "0e11131519110e",
    "1": "040c040404040e",
    "2": "0e11010204081f",
    "3": "1f02040201110e",
    "4": "02060a121f0202",
    "5": "1f101e0101110e",
    "6": "0608101e11110e",
    "7": "1f010204080808",
    "8": "0e11110e11110e",
    "9": "0e11110f01020c",
}
"""Rows from the top, each five pixels as two hexadecimal digits, the left one in the highest bit."""


@cache
def written(text: str, scale: int) -> NDArray[np.bool_]:
    """Which pixels a text covers: (HEIGHT * scale, about (WIDTH + GAP) * scale for each letter)."""
    letters = [np.pad(_glyph(letter), ((0, 0), (0, GAP))) for letter in text]
    return np.concatenate(letters, axis=1)[:, :-GAP].repeat(scale, axis=0).repeat(scale, axis=1)


def _glyph(letter: str) -> NDArray[np.bool_]:
    rows = np.frombuffer(bytes.fromhex(_GLYPHS[letter]), np.uint8)
    return np.unpackbits(rows[:, None], axis=1)[:, -WIDTH:].astype(bool)
