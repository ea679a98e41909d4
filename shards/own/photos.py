"""Images below a directory, found by what rows call them; those that are missing or no images are named."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from PIL import Image

from shards.errors import DataError
from shards.format.images import MAX_PIXELS, UnreadableImage, read_image

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
OTHER_ENDINGS = (".heic", ".heif", ".avif", ".bmp", ".gif", ".tif", ".tiff")
"""Of images that are not packed: their owner has to convert them."""


class Photos:
    """The image files below a directory, by name.

    Raises:
        DataError: it is no directory, or there are no images in it.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise DataError(f"--images {directory}: no such directory")
        self.directory = directory
        files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
        self.files = [path.as_posix() for path in files if path.suffix.lower() in ENDINGS]
        self.others = [path.as_posix() for path in files if path.suffix.lower() in OTHER_ENDINGS]
        if not self.files:
            found = f"only {self.others[0]} and the like: convert them to JPEG" if self.others else "none is there"
            raise DataError(f"--images {directory}: no image ends in {', '.join(ENDINGS)}; {found}")
        self._by_tail: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            for tail in _tails(file.lower()):
                self._by_tail[tail].append(file)

    def find(self, ref: str) -> str | None:
        """The file that a row means, relative to the directory; None where there is none.

        `IMG_1.jpg`, `img_1`, `old/photos/IMG_1.jpg` and `C:\\photos\\IMG_1.jpg` all find `IMG_1.jpg`; of a path, as
        much of its end as leads to a single file counts.

        Raises:
            DataError: the name fits several files.
        """
        parts = [part for part in _parts(ref) if part not in ("", ".", "..")]
        fitting: list[str] = []
        for start in range(len(parts)):
            fitting = self._by_tail.get("/".join(parts[start:]), [])
            if fitting:
                break
        if len(fitting) > 1:
            exact = [file for file in fitting if file == ref or file.lower() == "/".join(parts)]
            if len(exact) != 1:
                raise DataError(
                    f"image {ref!r}: fits {fitting[0]} and {fitting[1]} in {self.directory}; write more of the path"
                )
            return exact[0]
        return fitting[0] if fitting else None


class Sizes(NamedTuple):
    """What the headers of image files say."""

    short_sides: dict[str, int]
    """Pixels of the shorter side, by file."""
    faults: dict[str, str]
    """Of those that are no images, or too large, by file."""


def measure(directory: Path, files: Iterable[str]) -> Sizes:
    """Read the headers of images; whether the rest of a file is whole shows when it is packed."""
    sizes = Sizes({}, {})
    for file in files:
        try:
            with Image.open(directory / file) as image:
                sizes.short_sides[file] = min(image.size)
                if image.width * image.height > MAX_PIXELS:
                    sizes.faults[file] = (
                        f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,} in all; make it smaller"
                    )
        except Image.UnidentifiedImageError:
            sizes.faults[file] = "is no image, or its header is damaged"
        except Exception as error:  # Pillow's plugins let through whatever struct, zlib or the disk raised
            sizes.faults[file] = f"cannot be read: {error}"
    return sizes


def same_pictures(directory: Path, files: Iterable[str]) -> dict[str, str]:
    """For each file the first one with the same content: copies of a picture belong to one split.

    Only files of equal size are read.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for file in files:
        by_size[(directory / file).stat().st_size].append(file)
    first: dict[str, str] = {}
    for group in by_size.values():
        if len(group) == 1:
            first[group[0]] = group[0]
            continue
        by_content: dict[str, str] = {}
        for file in group:
            first[file] = by_content.setdefault(_digest(directory / file), file)
    return first


def val_images(pictures: Mapping[str, str], share: float, seed: int) -> frozenset[str]:
    """The files that are kept for validation: at least one picture, and at least one is left for training.

    Args:
        pictures: of `same_pictures`; copies of a picture go where it goes.
        share: part of the pictures.
        seed: another one keeps others.

    Raises:
        DataError: there are fewer than two different pictures.
    """
    distinct = sorted(set(pictures.values()), key=lambda file: (_rank(file, seed), file))
    if len(distinct) < 2:
        raise DataError("one picture cannot be split into training and validation; give two different ones at least")
    number = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    chosen = set(distinct[:number])
    return frozenset(file for file, first in pictures.items() if first in chosen)


def _rank(file: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{file}".encode(), digest_size=8).digest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_image(path)).hexdigest()
    except UnreadableImage:
        return str(path)  # packing names it


def _tails(file: str) -> Iterable[str]:
    """All ends of a path, with and without the ending of the file."""
    parts = PurePosixPath(file).parts
    stem = [*parts[:-1], PurePosixPath(file).stem]
    for start in range(len(parts)):
        yield "/".join(parts[start:])
        yield "/".join(stem[start:])


def _parts(ref: str) -> tuple[str, ...]:
    path = PureWindowsPath(ref.lower())  # it takes slashes of both kinds
    return path.parts[1:] if path.anchor else path.parts
