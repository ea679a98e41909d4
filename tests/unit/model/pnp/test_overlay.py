"""The picture of an answer: everything is where it belongs, and no image and no text is too odd to be shown."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from model.pnp.heat_colors import STEPS, heat_colors
from model.pnp.overlay import (
    ELLIPSIS,
    GAP,
    LONG_SIDE,
    MAX_CHARACTERS,
    MAX_LINES,
    MIN_SIDE,
    MIN_STRIP_WIDTH,
    OUTLINE,
    POINT_FILL,
    STRIP,
    display_size,
    draw_overlay,
    muted,
    point_radius,
    wrapped,
)

COLD = np.zeros((4, 4))
FONT = ImageFont.load_default(size=16)
SKY = (10, 120, 60)


def drawn(size: tuple[int, int] = (400, 300), *, heatmap=COLD, points=(), mask=None, **text) -> Image.Image:
    text = {"question": "Is it red?", "answer": "yes", "confidence": 0.5, **text}
    return draw_overlay(Image.new("RGB", size, SKY), heatmap, points, mask, **text)


def changed(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool of the part that shows the image: True where it is no longer plain."""
    return (np.asarray(picture.crop((0, 0, *size))) != SKY).any(axis=-1)


def heated(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool of the part that shows the image with heat: True where it is no longer its grey."""
    grey = muted(Image.new("RGB", (1, 1), SKY)).round()[0, 0]
    return (np.asarray(picture.crop((0, 0, *size))) != grey).any(axis=-1)


def test_a_cold_heatmap_without_points_and_mask_leaves_the_image_alone() -> None:
    assert not changed(drawn(), (400, 300)).any()


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("column", [0, 2])
def test_heat_is_shown_at_its_cell_and_nowhere_else(row: int, column: int) -> None:
    heatmap = COLD.copy()
    heatmap[row, column] = 1e-6
    warm = heated(drawn(heatmap=heatmap), (400, 300)).reshape(4, 75, 4, 100).mean(axis=(1, 3))
    assert warm[row, column] > 0.9
    far = np.abs(np.arange(4)[:, None] - row) + np.abs(np.arange(4) - column) > 2
    assert not warm[far].any()


COLORS = [(0, 0, 0), (255, 255, 255), SKY, (255, 240, 100), (225, 45, 60), (120, 20, 90)]


@pytest.mark.parametrize("color", COLORS)
def test_heat_is_seen_on_an_image_of_any_color_and_the_more_the_hotter(color: tuple[int, int, int]) -> None:
    heatmap = np.tile(np.linspace(0, 1, 5), (5, 1))
    picture = draw_overlay(Image.new("RGB", (500, 500), color), heatmap, (), None, question="", answer="", confidence=1)
    pixels = np.asarray(picture)[250, 50:500:100].astype(int)
    colorful = pixels.max(axis=1) - pixels.min(axis=1)
    assert colorful[0] == 0, "without heat it is grey"
    assert (colorful[2:] > 60).all()
    assert (np.abs(np.diff(pixels, axis=0)).sum(axis=1) > 20).all(), "two levels look alike"


def test_equal_steps_of_heat_are_equal_steps_of_lightness() -> None:
    linear = (heat_colors(np.linspace(0, 1, STEPS)) / 255) ** 2.2
    lightness = np.cbrt(linear @ (0.2126, 0.7152, 0.0722))
    steps = np.diff(lightness)
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.min()
    assert lightness[-1] - lightness[0] > 0.5


def test_beside_the_heat_stands_the_image_as_it_is() -> None:
    picture = drawn(heatmap=np.ones((4, 4)), mask=np.ones((2, 2)), points=[(200, 150)])
    assert not changed(picture.crop((400 + GAP, 0, 800 + GAP, 300)), (400, 300)).any()


@pytest.mark.parametrize("size", [(400, 300), (40, 30), (4000, 3000)])
def test_points_are_painted_where_they_are_in_the_image_and_are_not_mirrored(size: tuple[int, int]) -> None:
    width, height = display_size(*size)
    flat = np.ones((4, 4))
    with_point = drawn(size, heatmap=flat, points=[(size[0] * 0.25, size[1] * 0.75)])
    differs = np.asarray(with_point) != np.asarray(drawn(size, heatmap=flat))
    rows, columns = np.nonzero(differs[:height].any(axis=-1))
    assert abs(rows.mean() - 0.75 * height) < 1
    assert abs(columns.mean() - 0.25 * width) < 1
    radius = point_radius((width, height))
    assert len(rows) == pytest.approx(np.pi * radius**2, rel=0.2)
    assert with_point.getpixel((width // 4 - radius // 2 - 1, 3 * height // 4)) == POINT_FILL


def test_points_on_little_heat_are_left_out_and_the_others_numbered_in_their_order() -> None:
    heatmap = COLD.copy()
    heatmap[0, 0], heatmap[3, 3], heatmap[0, 3] = 1.0, 0.9, 0.3
    strong, weak = [(50.0, 37.0), (350.0, 262.0)], (350.0, 37.0)
    picture = np.asarray(drawn(heatmap=heatmap, points=[*strong, weak]))
    assert np.array_equal(picture, np.asarray(drawn(heatmap=heatmap, points=strong)))
    marks = [picture[int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6] for x, y in strong]
    assert not np.array_equal(*marks), "both have the same number"


def test_notes_are_written_below_the_answer() -> None:
    assert drawn(notes=["the question alone gets the same answer"]).height > drawn().height + 10


def test_the_outline_runs_along_the_mask_and_leaves_its_inside_free() -> None:
    mask = np.zeros((30, 40), dtype=bool)  # a tenth of the image each way
    mask[5:15, 10:30] = True
    picture = drawn((400, 300), mask=mask)
    painted = changed(picture, (400, 300))
    assert picture.getpixel((100, 50)) == picture.getpixel((299, 149)) == OUTLINE
    for y, x in ((50, 200), (149, 200), (100, 100), (100, 299)):
        assert painted[y, x]
    inside = np.zeros_like(painted)
    inside[54:146, 104:296] = True
    outside = np.ones_like(painted)
    outside[50:150, 100:300] = False
    assert not painted[inside].any()
    assert not painted[outside].any()


@pytest.mark.parametrize("mask", [np.zeros((8, 8), dtype=bool), np.zeros((0, 0), dtype=bool)])
def test_an_empty_mask_has_no_outline(mask) -> None:
    assert not changed(drawn(mask=mask), (400, 300)).any()


def test_a_mask_of_everything_is_outlined_at_the_edge_of_the_image() -> None:
    painted = changed(drawn(mask=np.ones((2, 2), dtype=bool)), (400, 300))
    assert painted[0].all()
    assert painted[:, -1].all()
    assert not painted[10:-10, 10:-10].any()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 1), (384, 384)),
        ((64, 32), (384, 192)),
        ((640, 480), (640, 480)),
        ((4000, 3000), (1024, 768)),
        ((20_000, 2), (1024, MIN_SIDE)),
        ((2, 20_000), (MIN_SIDE, 1024)),
    ],
)
def test_every_image_is_shown_at_a_size_that_can_be_looked_at(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert display_size(*size) == shown
    mask = np.ones((3, 3), dtype=bool)
    picture = drawn(size, heatmap=np.eye(4), points=[(size[0] / 2, size[1] / 2)], mask=mask)
    assert picture.mode == "RGB"
    assert picture.width == max(2 * shown[0] + GAP, MIN_STRIP_WIDTH)
    assert shown[1] + 60 < picture.height < shown[1] + 150
    assert max(shown) <= LONG_SIDE[1]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_images_of_every_mode_are_shown(mode: str) -> None:
    arguments = {"question": "?", "answer": "", "confidence": None}
    assert draw_overlay(Image.new(mode, (30, 20)), np.eye(4), [(3, 3)], None, **arguments).mode == "RGB"


def test_the_image_that_was_given_is_not_painted_on() -> None:
    image = Image.new("RGB", (400, 300), SKY)
    draw_overlay(image, np.eye(4), [(3, 3)], np.ones((2, 2)), question="?", answer="a", confidence=None)
    assert image.getcolors() == [(400 * 300, SKY)]


@pytest.mark.parametrize("heatmap", [np.full((3, 3), np.nan), np.zeros((0, 0)), np.full((1, 1), 2.0)])
def test_a_heatmap_that_says_nothing_is_no_reason_to_fail(heatmap) -> None:
    assert drawn(heatmap=heatmap).width == drawn().width


def text_pixels(picture: Image.Image) -> int:
    return int((np.asarray(picture.crop((0, 300, *picture.size))) != STRIP).any(axis=-1).sum())


def test_question_answer_and_confidence_are_written_below() -> None:
    nothing = {"question": "", "answer": "", "confidence": None}
    pixels = [
        text_pixels(drawn(**{**nothing, **text}))
        for text in ({}, {"answer": "yes"}, {"answer": "yes", "confidence": 0.87}, {"question": "Is it?"})
    ]
    assert pixels[0] == 0
    assert 0 < pixels[1] < pixels[2]
    assert pixels[3] > 0


def test_a_long_question_makes_the_picture_higher_and_not_wider() -> None:
    short, long = drawn(question="Is it red?"), drawn(question="Is it red, or is it not? " * 12)
    assert long.width == short.width
    assert long.height > short.height + 40


@pytest.mark.parametrize("character", ["a ", "i", "漢", "\u0301", "\u200b"])
def test_of_a_text_of_any_length_a_few_lines_are_shown(character: str) -> None:
    endless = drawn(question=character * 120_000, answer=character * 120_000)
    assert endless.width == 800 + GAP
    assert endless.height < 300 + 2 * MAX_LINES * 30


def test_what_is_not_shown_has_an_ellipsis_in_its_place_that_fits_too() -> None:
    words = [f"word{number}" for number in range(200)]
    for width in (60, 120, 333):
        whole, shown = wrapped(" ".join(words), FONT, width), wrapped(" ".join(words), FONT, width, max_lines=3)
        assert shown[:2] == whole[:2]
        assert shown[2].endswith(ELLIPSIS)
        assert whole[2].startswith(shown[2].removesuffix(ELLIPSIS))
        assert all(FONT.getlength(line) <= width for line in shown)
    assert wrapped("a b", FONT, 500, max_lines=1) == ["a b"]
    assert wrapped("word " * 9, FONT, 60, max_lines=9) == wrapped("word " * 9, FONT, 60)


def test_the_caption_is_written_with_the_font_that_has_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def larger(text: str, size: int) -> ImageFont.FreeTypeFont:
        asked.append(text.removesuffix(ELLIPSIS))
        return ImageFont.load_default(size=size + 10)

    expected = drawn(question="红色?", answer="红")
    monkeypatch.setattr("model.pnp.overlay.font_for", larger)
    assert drawn(question="红色?", answer="红").height > expected.height + 20
    assert asked == ["红色?", "红 (50%)"]
    drawn(question="\u0301" * 120_000)
    assert len(asked[2]) < MAX_CHARACTERS + 10, "a text without width would be measured as a whole, again and again"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300) | st.text("ab ", min_size=100, max_size=900), st.integers(60, 500))
def test_wrapping_keeps_every_character_in_order_and_every_line_in_its_width(text: str, width: int) -> None:
    lines = wrapped(text, FONT, width)
    assert all(line and (len(line) == 1 or FONT.getlength(line) <= width) for line in lines)
    if text.isprintable():
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_words_stay_whole_where_they_fit() -> None:
    words = ["what", "color", "is", "the", "very", "large", "circle"]
    assert " ".join(wrapped(" ".join(words), FONT, 120)).split() == words
    assert len(wrapped("x" * 3000, FONT, 120)) > 10


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(), max_size=60) | st.just("\ud800 \x00 \n \U0010ffff 漢字 😀 عربى"))
def test_no_text_is_too_odd_to_be_written(text: str) -> None:
    assert drawn(question=text, answer=text).width == 800 + GAP
