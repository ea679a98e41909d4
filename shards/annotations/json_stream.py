"""The members of a JSON object too large for memory, one at a time."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import DataError

CHUNK = 1 << 20
LONGEST_MEMBER = 16 << 20
MARGIN = 16
"""Characters that a token cut by the end of the text can reach back: `-1.5e-`, `\\ud83d\\ude0`, `fals`."""

_decode = json.JSONDecoder().raw_decode
_blank = re.compile(r"[ \t\n\r\ufeff]*")


def iterate_members(path: Path, advance: Callable[[int], object]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of the object that a JSON file holds, in file order, keys that repeat included.

    Memory: about `CHUNK` bytes of text and one member.

    Args:
        path: the file, in UTF-8.
        advance: called with the number of bytes read since the last call.

    Raises:
        DataError: broken JSON, with file and byte offset, or a member above `LONGEST_MEMBER`.
    """
    with open_annotations(path) as file:
        window = _Window(file, path, advance)
        window.expect("{", "a JSON object with one record per id")
        if window.peek() != "}":
            yield from _members(window)
        window.expect("}", "',' or '}'")
        if window.peek():
            raise window.broken(window.at, "text behind the end of the object")


def open_annotations(path: Path) -> BinaryIO:
    """Open an annotation file, or say in one line why not."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _members(window: "_Window") -> Iterator[tuple[str, Any]]:
    while True:
        if window.peek() != '"':
            raise window.broken(window.at, "expected a key in double quotes")
        key = window.value()
        window.expect(":", "':' behind the key")
        window.peek()
        yield key, window.value()
        if window.peek() != ",":
            return
        window.at += 1


class _Window:
    """The piece of the file that is being parsed: `text`, of which everything before `at` is done with."""

    def __init__(self, file: BinaryIO, path: Path, advance: Callable[[int], object]) -> None:
        self.text = ""
        self.at = 0
        self._file, self._path, self._advance = file, path, advance
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._first_byte = 0
        self._bytes_read = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not white space, left in place; "" at the end of the file."""
        while True:
            self.at = _blank.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_on():
                return ""

    def expect(self, character: str, what: str) -> None:
        """Pass over `character`."""
        found = self.peek()
        if found != character:
            raise self.broken(self.at, f"expected {what}, found {repr(found) if found else 'the end of the file'}")
        self.at += 1

    def value(self) -> Any:
        """The JSON value that starts at `at`; reads on until it is complete."""
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if self._is_hopeless(error) or not self._read_on():
                    raise self._broken_value(error) from None
                continue
            # A number at the end of the text may go on behind it: `12.` decodes as 12.
            if end + MARGIN <= len(self.text) or not self._read_on():
                self.at = end
                return value

    def broken(self, position: int, what: str) -> DataError:
        """The error for a fault at a position of the text."""
        offset = self._first_byte + len(self.text[:position].encode())
        return DataError(f"{self._path}: broken JSON at byte {offset}: {what}")

    def _is_hopeless(self, error: Exception) -> bool:
        """Whether more text cannot mend a value: the fault is far from the end of the text, or the value too long."""
        if len(self.text) - self.at > LONGEST_MEMBER or not isinstance(error, json.JSONDecodeError):
            return True
        return len(self.text) - error.pos > CHUNK + MARGIN and not error.msg.startswith("Unterminated string")

    def _broken_value(self, error: Exception) -> DataError:
        if isinstance(error, RecursionError):
            return self.broken(self.at, "nested too deep")
        if not isinstance(error, json.JSONDecodeError):
            return self.broken(self.at, str(error))
        if len(self.text) - self.at > LONGEST_MEMBER and error.pos - self.at > LONGEST_MEMBER // 2:
            return self.broken(self.at, f"a record longer than {LONGEST_MEMBER >> 20} MiB; expected one record per id")
        return self.broken(error.pos, error.msg)

    def _read_on(self) -> bool:
        """Drop what is done with and append one chunk; False, with nothing changed, at the end of the file."""
        if self._ended:
            return False
        chunk = self._file.read(CHUNK)
        self._ended = not chunk
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            offset = self._bytes_read - pending + error.start
            raise DataError(f"{self._path}: not UTF-8 text at byte {offset}: {error.reason}") from None
        if self._ended:
            return False
        self._bytes_read += len(chunk)
        self._advance(len(chunk))
        self._first_byte += len(self.text[: self.at].encode())
        self.text = self.text[self.at :] + text
        self.at = 0
        return True
