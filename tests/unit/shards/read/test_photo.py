"""Any photo comes out upright, in RGB, as a person sees it; what is none is one line, and no bomb is ever decoded."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import UserError
from shards.format.images import as_rgb, decode_image
from shards.read.photo import MAX_PHOTO_PIXELS, check_question, read_photo

RED = (255, 0, 0)


def saved(path: Path, image: Image.Image, format: str, **options: object) -> Path:
    image.save(path, format, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_photo(path)
    assert image.mode == "RGB"
    return np.array(image)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(1, 1), (33, 20)])
def test_every_format_and_a_single_pixel_are_read(tmp_path: Path, format: str, size: tuple[int, int]):
    """The name of the file says nothing."""
    image = Image.new("RGB", size, (250, 5, 5))
    found = pixels(saved(tmp_path / "photo.dat", image, format))
    assert found.shape == (size[1], size[0], 3)
    assert np.abs(found.astype(int) - (250, 5, 5)).max() <= 4


def test_a_jpeg_with_further_pictures_behind_it_is_its_first(tmp_path: Path):
    blue = Image.new("RGB", (8, 8), (0, 0, 255))
    path = saved(tmp_path / "phone.jpg", Image.new("RGB", (8, 8), RED), "MPO", save_all=True, append_images=[blue])
    assert tuple(pixels(path)[0, 0]) == (254, 0, 0)
    assert decode_image(path.read_bytes(), path).extension == "jpg", "and it may be packed as one"


def test_an_animation_is_its_first_picture(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    path = saved(tmp_path / "a.gif", frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(pixels(path)[0, 0]) == RED


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("I;16", 257 * 100, (100, 100, 100)),
    ],
)
def test_every_kind_of_png_looks_as_it_does_on_white_paper(tmp_path: Path, mode: str, color, expected):
    found = pixels(saved(tmp_path / "photo.png", Image.new(mode, (3, 2), color), "PNG"))
    assert (found == expected).all()


def test_16_bits_of_grey_keep_their_steps_from_black_to_white(tmp_path: Path):
    steps = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    found = pixels(saved(tmp_path / "deep.png", Image.fromarray(steps), "PNG"))
    assert (found[..., 0].ravel() == np.arange(256)).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_range_are_stretched_to_the_full_one(tmp_path: Path, kind: type):
    path = saved(tmp_path / "depth.tif", Image.fromarray(np.array([[-50, 0, 50]], dtype=kind)), "TIFF")
    first, middle, last = pixels(path)[0, :, 0].astype(int)
    assert (first, abs(middle - 127) <= 1, last >= 254) == (0, True, True)
    flat = Image.fromarray(np.zeros((2, 2), dtype=kind))
    assert as_rgb(flat).getextrema() == ((0, 0),) * 3


def test_a_palette_keeps_its_colors_and_its_transparent_entry_is_white(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    found = pixels(saved(tmp_path / "p.png", image, "PNG", transparency=1))
    assert found.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk_is_read_in_colors(tmp_path: Path):
    found = pixels(saved(tmp_path / "print.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(found.astype(int) - RED).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_however_the_camera_was_held(tmp_path: Path, orientation: int):
    upright = Image.fromarray(np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10)
    held = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if held is None else upright.transpose(held)
    found = pixels(saved(tmp_path / "held.png", stored, "PNG", exif=exif.tobytes()))
    assert (found[..., 0] == np.array(upright)).all()


def header_only_png(width: int, height: int) -> bytes:
    """A few bytes that announce an image."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (MAX_PHOTO_PIXELS // 1000, 1001)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int], monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    path = tmp_path / "bomb.png"
    path.write_bytes(header_only_png(*size))
    with pytest.raises(UserError, match=r"bomb\.png: .*pixels"):
        read_photo(path)


class TestWhatIsNoPhoto:
    def refused(self, path: Path) -> str:
        with pytest.raises(UserError) as error:
            read_photo(path)
        message = str(error.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
    def test_a_truncated_one_is_said_to_be_damaged(self, tmp_path: Path, format: str):
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(noise).save(data, format)
        path = tmp_path / "cut"
        path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
        assert "cannot be decoded" in self.refused(path) or "not a JPEG" in self.refused(path)

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff\xd8\xff", b"\0" * 4000])
    def test_another_file_is_said_to_be_no_image(self, tmp_path: Path, content: bytes):
        path = tmp_path / "photo.jpg"
        path.write_bytes(content)
        assert "not a JPEG, PNG, WebP, GIF, BMP or TIFF image" in self.refused(path)

    def test_a_missing_one_and_a_directory_are_named(self, tmp_path: Path):
        assert "cannot be read: No such file or directory" in self.refused(tmp_path / "none.jpg")
        assert "a directory; expected an image file" in self.refused(tmp_path)

    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path: Path):
        os.mkfifo(tmp_path / "pipe")
        assert "a pipe or a device" in self.refused(tmp_path / "pipe")


class TestQuestions:
    @pytest.mark.parametrize("text", ["", " \t\n", "\0\x07", "\u200b\ufeff", "\u00a0\u3000"])
    def test_nothing_to_see_is_no_question(self, text: str):
        with pytest.raises(UserError, match="question: empty"):
            check_question(text)

    @pytest.mark.parametrize(
        ("text", "clean"),
        [
            ("What color is the car?", "What color is the car?"),
            ("  Is it\r\n\tred?  ", "Is it red?"),
            ("Is\u2028it\u00a0red?", "Is it red?"),
            ("Is\0 it\x1b[31m red\x7f?", "Is it[31m red?"),
            ("这辆车是什么颜色的？", "这辆车是什么颜色的？"),
            ("می\u200cخواهم", "می\u200cخواهم"),
            ("a\u0301 👩\u200d🚒?", "a\u0301 👩\u200d🚒?"),
            ("?", "?"),
        ],
    )
    def test_white_space_is_collapsed_and_control_characters_are_gone(self, text: str, clean: str):
        assert check_question(text) == clean
        assert check_question(clean) == clean

    def test_ten_thousand_characters_are_a_question(self):
        assert len(check_question("x" * 10_000)) == 10_000

    def test_bytes_that_were_no_utf_8_are_refused_at_their_place(self):
        """As Python hands over a command line in Latin-1."""
        with pytest.raises(UserError, match="question: character 8 is no text"):
            check_question("Is it r\udce9d?")
