"""Colors of heat: equal steps of heat are equal steps of lightness to the eye, from dark violet to light yellow.

The way is straight in Oklab's cylinder (Ottosson 2020): lightness and hue grow evenly, and the chroma is what a screen
can show of CHROMA.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LIGHTNESS = (0.32, 0.94)
HUE = (305.0, 460.0)
"""Degrees: violet over red to yellow."""
CHROMA = 0.2
STEPS = 256

_TO_LMS = np.array(
    (
        (1.0, 0.3963377774, 0.2158037573),
        (1.0, -0.1055613458, -0.0638541728),
        (1.0, -0.0894841775, -1.2914855480),
    )
)
_TO_LINEAR = np.array(
    (
        (4.0767416621, -3.3077115913, 0.2309699292),
        (-1.2684380046, 2.6097574011, -0.3413193965),
        (-0.0041960863, -0.7034186147, 1.7076147010),
    )
)
_BISECTIONS = 24


def heat_colors(level: ArrayLike) -> Floats:
    """(...) levels in [0, 1] to (..., 3) sRGB in [0, 255]."""
    places = np.linspace(0, 1, STEPS)
    return np.stack([np.interp(level, places, channel) for channel in _MAP.T], axis=-1)


def _linear(lightness: Floats, chroma: Floats, hue: Floats) -> Floats:
    """(S,) each to (S, 3) linear sRGB, outside of [0, 1] where no screen shows the color."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    return (lab @ _TO_LMS.T) ** 3 @ _TO_LINEAR.T


def _made() -> Floats:
    lightness, hue = np.linspace(*LIGHTNESS, STEPS), np.radians(np.linspace(*HUE, STEPS))
    shown, beyond = np.zeros(STEPS), np.full(STEPS, CHROMA)
    for _ in range(_BISECTIONS):
        middle = (shown + beyond) / 2
        linear = _linear(lightness, middle, hue)
        fits = ((linear >= 0) & (linear <= 1)).all(axis=-1)
        shown, beyond = np.where(fits, middle, shown), np.where(fits, beyond, middle)
    linear = _linear(lightness, shown, hue).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_MAP = _made()
