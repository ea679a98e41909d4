"""Images are found by whatever rows call them, and copies of a picture are never in both splits."""

from pathlib import Path

import pytest
from PIL import Image

from shards.errors import DataError
from shards.format.images import MAX_PIXELS
from shards.own.photos import Photos, measure, same_pictures, val_images


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    (photos / "old").mkdir(parents=True)
    for number, name in enumerate(("IMG_1.JPG", "b.png", "old/c.webp", "old/b.png")):
        kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name[-4:].strip(".").lower()]
        Image.new("RGB", (20 + number, 30), (40 * number, 0, 0)).save(photos / name, kind)
    (photos / "d.heic").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    return photos


@pytest.mark.parametrize(
    ("ref", "file"),
    [
        ("IMG_1.JPG", "IMG_1.JPG"),
        ("img_1.jpg", "IMG_1.JPG"),
        ("img_1", "IMG_1.JPG"),
        ("./photos/IMG_1.JPG", "IMG_1.JPG"),
        ("C:\\Users\\me\\photos\\IMG_1.JPG", "IMG_1.JPG"),
        ("/data/photos/old/c.webp", "old/c.webp"),
        ("c", "old/c.webp"),
        ("old/b.png", "old/b.png"),
        ("b.png", "b.png"),
        ("e.jpg", None),
        ("", None),
    ],
)
def test_a_row_finds_its_image(directory: Path, ref: str, file: str | None):
    assert Photos(directory).find(ref) == file


def test_a_name_that_fits_two_files_is_refused_with_both(directory: Path):
    with pytest.raises(DataError, match=r"image 'elsewhere/b\.png': fits b\.png and old/b\.png"):
        Photos(directory).find("elsewhere/b.png")


def test_files_of_other_kinds_are_known(directory: Path):
    assert Photos(directory).others == ["d.heic"]


def test_a_directory_without_images_says_what_is_there(tmp_path: Path):
    (tmp_path / "d.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"only d\.heic and the like: convert them to JPEG"):
        Photos(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        Photos(tmp_path / "none")


def test_headers_are_measured_and_what_is_no_image_is_named(directory: Path):
    (directory / "broken.jpg").write_bytes(b"no image")
    sizes = measure(directory, ["b.png", "broken.jpg"])
    assert sizes.short_sides == {"b.png": 21}
    assert list(sizes.faults) == ["broken.jpg"]


def test_an_image_with_more_pixels_than_are_packed_is_named_with_its_size(directory: Path):
    wide = MAX_PIXELS // 1000 + 1
    Image.new("1", (wide, 1000)).save(directory / "scan.png")
    sizes = measure(directory, ["scan.png"])
    assert sizes.faults == {"scan.png": f"has {wide} x 1000 pixels, more than {MAX_PIXELS:,} in all; make it smaller"}


def test_copies_of_a_picture_are_one_picture(directory: Path):
    (directory / "copy.png").write_bytes((directory / "b.png").read_bytes())
    files = Photos(directory).files
    first = same_pictures(directory, files)
    assert first["copy.png"] == first["b.png"] == "b.png"
    assert len(set(first.values())) == len(files) - 1


@pytest.mark.parametrize("seed", range(20))
def test_no_picture_is_in_both_splits_and_neither_is_empty(seed: int):
    pictures = {f"{number}.jpg": f"{number % 7}.jpg" for number in range(21)}
    val = val_images(pictures, 0.2, seed)
    train = pictures.keys() - val
    assert {pictures[file] for file in val}.isdisjoint(pictures[file] for file in train)
    assert len(val) == 3
    assert val == val_images(dict(reversed(pictures.items())), 0.2, seed), "the order of the files decides nothing"


def test_another_seed_keeps_other_images():
    pictures = {f"{number}.jpg": f"{number}.jpg" for number in range(100)}
    assert val_images(pictures, 0.1, 1) != val_images(pictures, 0.1, 2)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_splits_have_an_image_whatever_the_share(share: float):
    assert len(val_images({"a.jpg": "a.jpg", "b.jpg": "b.jpg"}, share, 1)) == 1
    with pytest.raises(DataError, match="one picture cannot be split"):
        val_images({"a.jpg": "a.jpg", "b.jpg": "a.jpg"}, share, 1)
