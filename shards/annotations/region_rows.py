"""Rows of a TSV of regions: an image each, as LXMERT's files have them (`load_obj_tsv` of its src/utils.py).

Ten columns without a header, arrays in base64 of little-endian int64 or float32. No column is quoted.

Shapes: R regions (num_boxes), F numbers of a feature.
"""

import base64
import binascii

import numpy as np

from shards.errors import DataError
from shards.format.regions import Regions

COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)
LONGEST_ROW = 64 << 20
"""36 regions of 2,048 numbers take 0.4 MB."""

_INT, _FLOAT = np.dtype("<i8"), np.dtype("<f4")
_ARRAYS = {"objects_id": _INT, "objects_conf": _FLOAT, "attrs_id": _INT, "attrs_conf": _FLOAT, "boxes": _FLOAT}
_MOST_DIGITS = 9
"""Of pixels and boxes; more would not fit into the numbers of a sample."""
_BEYOND = 1e-5
"""Part of a side by which a box may stand beyond its image; as LXMERT's own data sets check it."""


def check_columns(row: bytes, where: str) -> None:
    """Refuse a row that has not the ten columns; looks at nothing else, and so is fast.

    Raises:
        DataError: the message names `where`.
    """
    found = row.count(b"\t") + 1
    if found != len(COLUMNS):
        cut = "" if row.endswith(b"\n") else ", and no end of line: the file may be cut off"
        raise DataError(f"{where}: {found} columns{cut}; expected the {len(COLUMNS)} of LXMERT's: {', '.join(COLUMNS)}")


def image_id_of(row: bytes, where: str) -> str:
    """The first column.

    Raises:
        DataError: it is empty, or no UTF-8.
    """
    try:
        image_id = row.partition(b"\t")[0].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: img_id: not UTF-8 text: {error.reason}") from None
    if not image_id:
        raise DataError(f"{where}: img_id is empty")
    return image_id


def parse_row(row: bytes, where: str) -> Regions:
    """The regions of a row.

    Raises:
        DataError: a column is cut off, damaged, of another length than num_boxes says, not finite, or a box stands
            outside of its image; the message names `where` and the column.
    """
    check_columns(row, where)
    columns = dict(zip(COLUMNS, row.rstrip(b"\r\n").split(b"\t"), strict=True))
    where = f"{where}: image {image_id_of(row, where)!r}"
    height, width, count = (_number(columns[name], name, where) for name in ("img_h", "img_w", "num_boxes"))
    arrays = {name: _array(columns[name], name, kind, where) for name, kind in _ARRAYS.items()}
    for name, values in arrays.items():
        expected = 4 * count if name == "boxes" else count
        if len(values) != expected:
            raise DataError(f"{where}: {name}: {len(values)} numbers; expected {expected}, as num_boxes is {count}")
    features = _array(columns["features"], "features", _FLOAT, where)
    if not len(features) or len(features) % count:
        raise DataError(f"{where}: features: {len(features)} numbers, which are not as many for each of {count} boxes")
    found = Regions(
        size=np.array([width, height], np.int64),
        boxes=arrays.pop("boxes").reshape(count, 4),
        features=features.reshape(count, -1),
        **arrays,
    )
    _check_numbers(found, where)
    return found


def _number(text: bytes, name: str, where: str) -> int:
    if not text.isdigit() or len(text) > _MOST_DIGITS or not int(text):
        shown = text[:20].decode(errors="replace")
        raise DataError(f"{where}: {name}: expected a whole number from 1 to 999,999,999, got {shown!r}")
    return int(text)


def _array(text: bytes, name: str, kind: np.dtype, where: str) -> np.ndarray:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: {name}: {len(text)} characters that are no base64, or cut off: {error}") from None
    if len(data) % kind.itemsize:
        raise DataError(f"{where}: {name}: {len(data)} bytes; expected {kind.itemsize} for each number: cut off")
    return np.frombuffer(data, kind).astype(kind.newbyteorder("="))


def _check_numbers(regions: Regions, where: str) -> None:
    for name in ("objects_conf", "attrs_conf", "boxes", "features"):
        if not np.isfinite(getattr(regions, name)).all():
            raise DataError(f"{where}: {name}: holds numbers that are not finite")
    parts = regions.unit_boxes()
    if parts.min() < -_BEYOND or parts.max() > 1 + _BEYOND:
        place = int(np.abs(parts - 0.5).max(axis=1).argmax())
        box = ", ".join(f"{value:g}" for value in regions.boxes[place])
        width, height = regions.size
        raise DataError(f"{where}: boxes: box {place + 1} ({box}) stands outside of an image of {width} x {height}")
