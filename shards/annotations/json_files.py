"""Files of records: a list inside a JSON object, a JSON array, or a JSON object per line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from shards.annotations.json_blocks import iterate_array
from shards.annotations.json_stream import open_annotations
from shards.annotations.seam import Advance
from shards.errors import DataError

T = TypeVar("T")

_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_offset = re.compile(r" \(byte (\d+)\)")


def read_list(path: Path, name: str, record: type[T], form: str, advance: Advance) -> list[T]:
    """The records of {name: [record, ...], ...}: see `read_holder`."""
    return getattr(read_holder(path, name, record, form, advance, kind=_holder(name, record)), name)


def read_holder(path: Path, name: str, record: type, form: str, advance: Advance, *, kind: type[T]) -> T:
    """An object that holds {name: [record, ...], ...}. Memory: the whole file and its records.

    Args:
        form: what the file should look like, for messages.
        kind: the type of the object.

    Raises:
        DataError: the file cannot be read, is broken (byte offset), has no such list, or an entry of it is not of its
            type (entries count from 1).
    """
    text = _read(path, advance)
    try:
        return msgspec.json.decode(text, type=kind)
    except _FAULTS:
        raise _fault(path, text, name, record, form) from None


def iterate_records(path: Path, record: type[T], form: str, advance: Advance) -> Iterator[tuple[str, T]]:
    """Yield (where, record) of a JSON array or of a file with one JSON object per line, whose blank lines are passed
    over; `where` is for messages: file and entry or line, counted from 1.

    Args:
        form: what the file should look like, for messages.

    Raises:
        DataError: the file cannot be read or is broken, or an entry or a line is not such a record.
    """
    if is_array(path):
        number = 0
        for block in iterate_array(path, record, advance):
            for found in block:
                number += 1
                yield f"{path}: entry {number}", found
        return
    decoder = msgspec.json.Decoder(record)
    for where, line in iterate_lines(path, advance):
        try:
            yield where, decoder.decode(line)
        except RecursionError:
            raise DataError(f"{where}: nested too deep; expected {form}") from None
        except msgspec.DecodeError as error:
            raise DataError(f"{where}: {error}; expected {form}") from None


def iterate_lines(path: Path, advance: Advance) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of the lines of a file that are not blank, without the white space around them.

    Raises:
        DataError: the file cannot be read, or is not UTF-8 (line, counted from 1).
    """
    with open_annotations(path) as file:
        for number, line in enumerate(file, start=1):
            advance(len(line))
            where = f"{path}: line {number}"
            try:
                text = line.removeprefix(_BYTE_ORDER_MARK if number == 1 else b"").decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 text: {error.reason}") from None
            if text:
                yield where, text


def _read(path: Path, advance: Advance) -> bytes:
    with open_annotations(path) as file:
        try:
            text = file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    advance(len(text))
    return text.removeprefix(_BYTE_ORDER_MARK)


def _holder(name: str, record: type) -> type[msgspec.Struct]:
    return msgspec.defstruct("Holder", [(name, list[record])])


def _fault(path: Path, text: bytes, name: str, record: type, form: str) -> DataError:
    """What is wrong with a text that does not decode: its JSON, its form, or one of its records."""
    try:
        raws = getattr(msgspec.json.decode(text, type=_holder(name, msgspec.Raw)), name)
    except msgspec.ValidationError as error:
        return DataError(f"{path}: {error}; expected {form}")
    except RecursionError:
        return DataError(f"{path}: broken JSON: nested too deep; expected {form}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = _offset.search(str(error))
        at = int(said[1]) if said else len(text)
        return DataError(f"{path}: broken JSON at byte {at}: {_offset.sub('', str(error))}; expected {form}")
    for number, raw in enumerate(raws, start=1):
        try:
            msgspec.json.decode(raw, type=record)
        except _FAULTS as error:
            return DataError(f"{path}: entry {number} of {name}: {error}")
    raise AssertionError(f"{path}: records decode one by one, but not together")


def is_array(path: Path) -> bool:
    """Whether a file holds a JSON array.

    Raises:
        DataError: it cannot be read.
    """
    with open_annotations(path) as file:
        try:
            start = file.read(1 << 10)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return start.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")
