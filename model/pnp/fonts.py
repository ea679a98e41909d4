"""The font that a text is written with: Pillow's own, or one of this machine where that lacks characters."""

import subprocess
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

USUAL_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/System/Library/Fonts/Supplemental/Arial Unicode.ttf",
    "C:/Windows/Fonts/msyh.ttc",
    "C:/Windows/Fonts/arial.ttf",
)
"""Where fonts of many scripts lie on machines that have no fontconfig to ask."""

NO_CHARACTER = "\uffff"
"""Will never be assigned, so that a font draws for it what it draws for anything that it lacks."""
SECONDS_FOR_FONTCONFIG = 10


class _FontFile(NamedTuple):
    path: str
    index: int
    """Of the font in a collection."""


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has all of a text's characters, or the one that lacks the fewest; Pillow's own comes first.

    Args:
        size: in pixels.
    """
    own = ImageFont.load_default(size=size)
    lacking = characters_lacking(own, text)
    if not lacking:
        return own
    best, fewest = own, len(lacking)
    for file in (*_fontconfig_choice(lacking), *(_FontFile(path, 0) for path in USUAL_FONTS if Path(path).is_file())):
        try:
            font = ImageFont.truetype(file.path, size, file.index)
        except OSError:
            continue  # damaged, or of bitmaps in other sizes, as fonts of coloured emoji are
        still = len(characters_lacking(font, text))
        if still < fewest:
            best, fewest = font, still
        if still == 0:
            break
    return best


def characters_lacking(font: ImageFont.FreeTypeFont, text: str) -> str:
    """The visible characters of a text that a font draws like one that it cannot have, each once, sorted."""
    nothing = _drawn(font, NO_CHARACTER)
    visible = (character for character in sorted(set(text)) if unicodedata.category(character)[0] not in "CZ")
    return "".join(character for character in visible if _drawn(font, character) == nothing)


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@lru_cache(maxsize=64)
def _fontconfig_choice(characters: str) -> tuple[_FontFile, ...]:
    """The installed font that has the most of these characters; none where there is no fontconfig."""
    pattern = f":charset={' '.join(f'{ord(character):x}' for character in characters)}"
    command = ["fc-match", "--format", "%{file}\n%{index}", pattern]
    try:
        asked = subprocess.run(command, capture_output=True, timeout=SECONDS_FOR_FONTCONFIG, check=True)
        path, index = asked.stdout.decode().split("\n")
        return (_FontFile(path, int(index)),)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
