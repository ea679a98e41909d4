"""A text gets a font that has its characters where the machine has one, and some font wherever it runs."""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from model.pnp import fonts
from model.pnp.fonts import characters_lacking, font_for

TEXTS = ("红色的方块在哪里?", "أين المربع الأحمر؟", "赤い四角はどこですか", "Где красный квадрат?")


def write_font(path: Path, characters: Iterable[str]) -> Path:
    """A TrueType font in which these characters are triangles, and all others squares."""

    def outline(*points: tuple[int, int]) -> bytes:
        deltas = np.diff(np.array([(0, 0), *points]), axis=0)
        x, y = (b"".join(struct.pack(">h", int(value)) for value in column) for column in deltas.T)
        header = struct.pack(">hhhhhHH", 1, 0, 0, 800, 800, len(points) - 1, 0)
        return header + b"\x01" * len(points) + x + y + b"\0" * (len(points) % 2)

    square, triangle = outline((0, 0), (0, 800), (800, 800), (800, 0)), outline((0, 0), (400, 800), (800, 0))
    groups = [struct.pack(">III", ord(c), ord(c), 1) for c in sorted(set(characters))]
    subtable = struct.pack(">HHIII", 12, 0, 16 + 12 * len(groups), 0, len(groups)) + b"".join(groups)
    tables = {
        b"cmap": struct.pack(">HHHHI", 0, 1, 3, 10, 12) + subtable,
        b"glyf": square + triangle,
        b"head": struct.pack(
            ">IIIIHHQQhhhhHHhhh", 0x10000, 0, 0, 0x5F0F3CF5, 3, 1000, 0, 0, 0, 0, 800, 800, 0, 8, 2, 1, 0
        ),
        b"hhea": struct.pack(">IhhhHhhhhhhhhhhhH", 0x10000, 800, -200, 0, 1000, 0, 0, 800, 1, 0, 0, 0, 0, 0, 0, 0, 2),
        b"hmtx": struct.pack(">HhHh", 1000, 0, 1000, 0),
        b"loca": struct.pack(">III", 0, len(square), len(square) + len(triangle)),
        b"maxp": struct.pack(">IHHHHHHHHHHHHHH", 0x10000, 2, 4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    directory, content, start = b"", b"", 12 + 16 * len(tables)
    for name, table in sorted(tables.items()):
        directory += struct.pack(">4sIII", name, 0, start + len(content), len(table))
        content += table + b"\0" * (-len(table) % 4)
    path.write_bytes(struct.pack(">IHHHH", 0x10000, len(tables), 64, 2, 48) + directory + content)
    return path


@pytest.fixture(autouse=True)
def _a_machine_without_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fonts._fontconfig_choice.cache_clear()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(fonts, "USUAL_FONTS", ())


def fc_match(tmp_path: Path, script: str) -> None:
    """Fontconfig's command, as this script."""
    command = tmp_path / "bin" / "fc-match"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


def path_of(font: ImageFont.FreeTypeFont) -> str | None:
    return font.path if isinstance(font.path, str) else None


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("known_by", ["fontconfig", "its usual place"])
def test_a_text_is_written_with_an_installed_font_that_has_its_characters(
    text: str, known_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_font(tmp_path / "all.ttf", text)
    if known_by == "fontconfig":
        fc_match(tmp_path, f"printf '%s\\n0' {file}")
    else:
        monkeypatch.setattr(fonts, "USUAL_FONTS", (str(tmp_path / "none.ttf"), str(file)))
    font = font_for(text, 20)
    assert path_of(font) == str(file)
    assert font.size == 20
    assert characters_lacking(font, text) == ""
    assert characters_lacking(ImageFont.load_default(size=20), text) != "", "Pillow's own would do"


def test_fontconfig_is_asked_for_the_characters_that_are_lacking_and_once(tmp_path: Path) -> None:
    file = write_font(tmp_path / "all.ttf", "where?红色")
    fc_match(tmp_path, f'echo "$3" >> {tmp_path}/asked; printf "%s\\n0" {file}')
    for size in (16, 20):
        assert path_of(font_for("where 红色?", size)) == str(file)
    assert (tmp_path / "asked").read_text() == ":charset=7ea2 8272\n"


def test_what_pillows_own_font_has_is_written_with_it(tmp_path: Path) -> None:
    fc_match(tmp_path, f"echo asked > {tmp_path}/asked")
    assert path_of(font_for("Is there a red square? yes (87%) …", 16)) is None
    assert not (tmp_path / "asked").exists()


def test_of_fonts_that_lack_something_the_one_that_lacks_least_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, most = write_font(tmp_path / "few.ttf", "红"), write_font(tmp_path / "most.ttf", "红色的 ")
    monkeypatch.setattr(fonts, "USUAL_FONTS", (str(few), str(most), str(few)))
    assert path_of(font_for("红色的方", 16)) == str(most)
    assert path_of(font_for("a red square 红", 16)) is None, "Pillow's own lacks one of them, these fonts eleven"


@pytest.mark.parametrize(
    "script", [None, "exit 1", "echo nonsense", "printf '/nowhere.ttf\\n0'", "printf '/bin/sh\\n0'", "printf '\\377'"]
)
def test_without_a_font_that_can_be_used_pillows_own_is(script: str | None, tmp_path: Path) -> None:
    if script is not None:
        fc_match(tmp_path, script)
    assert path_of(font_for(TEXTS[0], 16)) is None


def test_white_space_and_what_is_not_seen_needs_no_font() -> None:
    assert characters_lacking(ImageFont.load_default(size=16), " \n\u200b\u00a0\ud800\U0010ffff") == ""
