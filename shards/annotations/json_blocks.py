"""A JSON object or array too large for memory, decoded into typed values block by block, at the speed of msgspec.

A block ends at a comma between two members of the outermost object or array. Such a comma is guessed from the end of
the text; the decoding proves the guess, since only at a right one do all brackets close.
"""

import contextlib
import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from shards.annotations.json_stream import LONGEST_MEMBER, open_annotations
from shards.errors import DataError

BLOCK = 8 << 20
TAIL = 1 << 16
"""Bytes at the end of a text in which the comma is looked for first."""

T = TypeVar("T")

_token = re.compile(rb'"(?:[^"\\]*(?:\\.[^"\\]*)*")?|[{}\[\],]', re.DOTALL)
"""A string, the quotation mark of one that is not complete, or a sign of structure."""
_offset = re.compile(r" \(byte (\d+)\)")
_BLANK = b" \t\n\r"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def iterate_object(
    path: Path, member: type[T], advance: Callable[[int], object], *, block: int = BLOCK
) -> Iterator[dict[str, T]]:
    """Yield the members of the JSON object that a file holds, some thousands at a time, in file order.

    Memory: two blocks of text and the decoded members of one. A key that repeats inside a block has its last value.

    Args:
        path: the file, in UTF-8.
        member: the type of the values.
        advance: called with the number of bytes read since the last call.
        block: bytes that are decoded at a time; more where a single member is longer.

    Raises:
        DataError: the file cannot be read, is broken (byte offset), or a member is not of its type (key).
    """
    with open_annotations(path) as file:
        yield from _Blocks(path, file, "{}", member, block).decode(advance)


def iterate_array(
    path: Path, member: type[T], advance: Callable[[int], object], *, block: int = BLOCK
) -> Iterator[list[T]]:
    """Yield the members of the JSON array that a file holds: as `iterate_object`; an error counts entries from 1."""
    with open_annotations(path) as file:
        yield from _Blocks(path, file, "[]", member, block).decode(advance)


class _Blocks:
    """The file as blocks: `_text` was read and not decoded yet."""

    def __init__(self, path: Path, file: BinaryIO, brackets: str, member: type, block: int) -> None:
        self._path, self._file, self._block = path, file, block
        self._opening, self._closing = (bracket.encode() for bracket in brackets)
        holding = (lambda kind: dict[str, kind]) if brackets == "{}" else (lambda kind: list[kind])
        self._decoder = msgspec.json.Decoder(holding(member))
        self._raw_decoder = msgspec.json.Decoder(holding(msgspec.Raw))
        self._member_decoder = msgspec.json.Decoder(member)
        self._text = b""
        self._enough = block
        """Bytes of text at which looking for a block is worth while."""
        self._bytes_done = 0
        self._members_done = 0

    def decode(self, advance: Callable[[int], object]) -> Iterator[Any]:
        self._pass_opening_bracket(advance)
        while data := self._read(advance):
            self._text += data
            if len(self._text) >= self._enough and (found := self._decode_block()) is not None:
                yield found
        if self._members_done and self._text.strip(_BLANK) == self._closing:
            raise self._broken(0, "expected a member behind ','")
        yield self._decode(self._text)

    def _read(self, advance: Callable[[int], object]) -> bytes:
        try:
            data = self._file.read(self._block)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from None
        advance(len(data))
        return data

    def _pass_opening_bracket(self, advance: Callable[[int], object]) -> None:
        start = self._read(advance)
        text = start.removeprefix(_BYTE_ORDER_MARK).lstrip(_BLANK)
        if not text.startswith(self._opening):
            expected = "a JSON object with one record per id" if self._opening == b"{" else "a JSON array of records"
            found = repr(chr(text[0])) if text else "the end of the file"
            raise self._broken(len(start) - len(text), f"expected {expected}, found {found}")
        self._text = text[1:]
        self._bytes_done = len(start) - len(self._text)

    def _decode_block(self) -> Any:
        """Decode up to the last comma between members and keep what is behind it; None if the text has none yet."""
        for size in _tail_sizes(len(self._text)):
            cut = _last_comma(self._text, size)
            if cut is None:
                continue
            try:
                # Only the whole text has a known depth where it begins: there a failure is the text's fault.
                found = self._decode(self._text[:cut] + self._closing, certain=size == len(self._text))
            except _FAULTS:
                continue
            self._text = self._text[cut + 1 :]
            self._bytes_done += cut + 1
            self._members_done += len(found)
            self._enough = self._block
            return found
        if len(self._text) > LONGEST_MEMBER + self._block:
            raise self._broken(0, f"a record longer than {LONGEST_MEMBER >> 20} MiB; expected one record per id")
        self._enough = 2 * len(self._text)  # or a long record would be looked through again and again
        return None

    def _decode(self, text: bytes, *, certain: bool = True) -> Any:
        try:
            with _uncollected():
                return self._decoder.decode(self._opening + text)
        except _FAULTS:
            if not certain:
                raise
            raise self._fault(text) from None

    def _fault(self, text: bytes) -> DataError:
        """What is wrong with a text that does not decode: its JSON, or one of its members."""
        try:
            members = self._raw_decoder.decode(self._opening + text)
        except RecursionError:
            return self._broken(0, "nested too deep")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            said = _offset.search(str(error))
            return self._broken(int(said[1]) - 1 if said else len(text), _offset.sub("", str(error)))
        named = members.items() if isinstance(members, dict) else enumerate(members, start=self._members_done + 1)
        for name, raw in named:
            try:
                self._member_decoder.decode(raw)
            except _FAULTS as error:
                where = f"entry {name}" if isinstance(name, int) else repr(name)
                return DataError(f"{self._path}: {where}: {error}")
        raise AssertionError(f"{self._path}: members decode one by one, but not together")

    def _broken(self, offset: int, what: str) -> DataError:
        return DataError(f"{self._path}: broken JSON at byte {self._bytes_done + offset}: {what}")


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: records hold no cycles, and looking for some would take a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _tail_sizes(length: int) -> Iterator[int]:
    size = TAIL
    while size < length:
        yield size
        size *= 8
    yield length


def _last_comma(text: bytes, size: int) -> int | None:
    """The last comma at the lowest depth of the final `size` bytes; in the whole text, at its outermost depth."""
    whole = size == len(text)
    start = 0 if whole else text.find(b"}", len(text) - size)
    if start < 0:
        return None
    depth, lowest, cut = 0, 0 if whole else len(text), None
    for token in _token.finditer(text, start):
        character = token[0]
        if character in b"{[":
            depth += 1
        elif character in b"}]":
            depth -= 1
        elif character == b"," and depth <= lowest:
            lowest, cut = depth, token.start()
        elif character == b'"':
            break
    return cut
