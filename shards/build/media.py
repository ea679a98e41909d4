"""Where the images of a build come from: files of a directory, or rows of regions; one of them becomes a member."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from shards.annotations import READERS
from shards.annotations.json_stream import open_annotations
from shards.annotations.region_rows import LONGEST_ROW, check_columns, image_id_of, parse_row
from shards.build.build_request import BuildRequest
from shards.build.tar_writer import EncodedImage
from shards.errors import DataError
from shards.format.images import MissingImage, UnreadableImage, decode_image, find_image, read_image, shrink
from shards.format.index import RegionShape
from shards.format.regions import EXTENSION
from shards.progress import Progress

_READ_AHEAD = 1 << 20


class Loaded(NamedTuple):
    """What lies where an image should be."""

    path: Path | None
    """The file; None where there is none."""
    data: bytes
    error: MissingImage | UnreadableImage | None = None


class Packable(NamedTuple):
    """An image as it goes into a shard, and the size of the original: (width, height) in pixels."""

    image: EncodedImage
    size: tuple[int, int]


class Origin(Protocol):
    """Where one image is; travels to the process that packs it."""

    ref: str
    """What the annotations call it."""

    def load(self) -> Loaded:
        """The bytes there are."""
        ...

    def encode(self, loaded: Loaded, resize: int | None) -> Packable:
        """Those bytes, checked to the last, as a member.

        Raises:
            UnreadableImage, DataError: they are no image.
        """
        ...


class Medium(Protocol):
    """Where all images of a build are."""

    def origin(self, ref: str) -> Origin:
        """Where the image is that the annotations call so."""
        ...

    def require(self, ref: str) -> None:
        """Refuse an image that is not there.

        Raises:
            MissingImage: there is no such image.
        """
        ...

    @property
    def shape(self) -> RegionShape | None:
        """Of regions; None for pixels."""
        ...


class ImageFile(NamedTuple):
    """An image in a file of the image directory."""

    ref: str
    directory: Path
    endings: tuple[str, ...]

    def load(self) -> Loaded:
        path: Path | None = None
        try:
            path = find_image(self.directory, self.ref, self.endings)
            return Loaded(path, read_image(path))
        except (MissingImage, UnreadableImage) as error:
            return Loaded(path, b"", error)

    def encode(self, loaded: Loaded, resize: int | None) -> Packable:
        decoded = decode_image(loaded.data, loaded.path)
        smaller = shrink(decoded, resize) if resize else None
        extension, content = (decoded.extension, loaded.data) if smaller is None else ("jpg", smaller)
        return Packable(EncodedImage(self.ref, extension, content), decoded.size)


class ImageDirectory(NamedTuple):
    """Images as files below a directory."""

    directory: Path
    endings: tuple[str, ...]
    """What may follow a ref, in order of preference."""
    shape: None = None

    def origin(self, ref: str) -> ImageFile:
        return ImageFile(ref, self.directory, self.endings)

    def require(self, ref: str) -> None:
        find_image(self.directory, ref, self.endings)


class RegionRow(NamedTuple):
    """The regions of an image in a row of a TSV."""

    ref: str
    path: Path | None
    """None where no file has such a row."""
    line: int
    offset: int
    size: int
    looked_in: str

    def load(self) -> Loaded:
        if self.path is None:
            return Loaded(None, b"", MissingImage(f"{self.looked_in}: no regions of image {self.ref!r}"))
        with open_annotations(self.path) as file:
            return Loaded(self.path, os.pread(file.fileno(), self.size, self.offset))

    def encode(self, loaded: Loaded, resize: int | None) -> Packable:  # noqa: ARG002 - there are no pixels
        regions = parse_row(loaded.data, f"{self.path}: line {self.line}")
        width, height = regions.size.tolist()
        return Packable(EncodedImage(self.ref, EXTENSION, regions.encode()), (width, height))


class RegionTable:
    """Where the regions of some images are in TSV files of any size: the files are read through once, and of each row
    its place is kept. Memory: about 0.3 KB for each image that is wanted, and one row.

    Args:
        paths: the files.
        refs: the images that are wanted; rows of others are passed over.

    Raises:
        DataError: a row lacks columns, or that of a wanted image is damaged, of another shape than those before it, or
            there a second time; the message names file and line. Every wanted row is decoded here: hours of packing
            should not end at the last one.
    """

    def __init__(self, paths: Sequence[Path], refs: Iterable[str], endings: Sequence[str], *, show: bool) -> None:
        self._paths, self._endings = paths, tuple(ending for ending in endings if ending)
        self._rows: dict[str, tuple[int, int, int, int] | None] = dict.fromkeys(map(self._name, refs))
        self._shape: RegionShape | None = None
        self._shape_at = ""
        with Progress("reading regions", sum(map(_size, paths)), "bytes", show=show) as progress:
            for number, path in enumerate(paths):
                for line, offset, row in _rows(path):
                    progress.advance(len(row))
                    self._take(number, line, offset, row)

    @property
    def shape(self) -> RegionShape | None:
        return self._shape

    def origin(self, ref: str) -> RegionRow:
        place, looked_in = self._rows[self._name(ref)], ", ".join(map(str, self._paths))
        if place is None:
            return RegionRow(ref, None, 0, 0, 0, looked_in)
        number, *rest = place
        return RegionRow(ref, self._paths[number], *rest, looked_in)

    def require(self, ref: str) -> None:
        error = self.origin(ref).load().error if self._rows[self._name(ref)] is None else None
        if error is not None:
            raise error

    def _name(self, ref: str) -> str:
        """What a TSV calls an image: its file's name without directories and ending."""
        name = PurePosixPath(ref).name or ref
        return next((name.removesuffix(ending) for ending in self._endings if name.endswith(ending)), name)

    def _take(self, number: int, line: int, offset: int, row: bytes) -> None:
        where = f"{self._paths[number]}: line {line}"
        check_columns(row, where)
        image_id = image_id_of(row, where)
        if image_id not in self._rows:
            return
        before = self._rows[image_id]
        if before is not None:
            raise DataError(
                f"{where}: image {image_id!r} is there a second time, after "
                f"{self._paths[before[0]]}: line {before[1]}; expected one row for each image"
            )
        shape = parse_row(row, where).shape
        if self._shape is None:
            self._shape, self._shape_at = shape, where
        elif shape != self._shape:
            raise DataError(
                f"{where}: image {image_id!r}: {shape}; expected {self._shape}, as in {self._shape_at}: all images of "
                "a split have as many regions of one width"
            )
        self._rows[image_id] = (number, line, offset, len(row))


def open_medium(request: BuildRequest, refs: Iterable[str]) -> Medium:
    """Where a build finds its images; `refs` are those that are wanted.

    Raises:
        DataError: see `RegionTable`.
    """
    endings = READERS[request.format].endings
    if request.images is not None:
        return ImageDirectory(request.images, endings)
    return RegionTable(request.regions, refs, endings, show=request.show_progress)


def _rows(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line from 1 on, byte offset, row with its end of line) of a file."""
    with open_annotations(path) as opened, open(opened.fileno(), "rb", buffering=_READ_AHEAD, closefd=False) as file:
        offset = line = 0
        while row := file.readline(LONGEST_ROW):
            line += 1
            if len(row) == LONGEST_ROW:
                raise DataError(f"{path}: line {line}: longer than {LONGEST_ROW >> 20} MiB; expected an image per line")
            if row.rstrip(b"\r\n"):  # csv.DictReader, with which LXMERT reads these files, passes over empty lines
                yield line, offset, row
            offset += len(row)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
