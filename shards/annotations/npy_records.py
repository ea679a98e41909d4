"""Records of a NumPy file of Python objects, which is a pickle: read as plain data, and nothing in it is carried out.

A pickle names functions and calls them. Here a name leads to a stand-in of our own for the few that NumPy writes arrays
with, or the file is refused. NumPy's own functions are not called either: the state of an array, or of its type, that
somebody wrote by hand can make them take any number for the address of an object.
"""

import io
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shards.annotations.json_stream import open_annotations
from shards.annotations.seam import Advance
from shards.errors import DataError

FORM = "a .npy file with an array of records, the first of which is its header"
_PLAIN_KINDS = "biufSU"
"""Truth values, numbers and texts: all that an array may hold beside objects."""
_MAX_HEADER = 10_000
_BYTES_PER_BYTE = 100
"""Of memory that objects take for each byte of their pickle, at most: a None is one byte, and eight in a list."""
_SPARE_BYTES = 2**30


class _Dtype:
    """What an array holds."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple) -> None:
        if len(state) < 2 or state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of records with named fields")
        self.order = state[1]

    def plain(self) -> np.dtype:
        """NumPy's own type, made from its name and not from the state in the file."""
        dtype = np.dtype(str(self.code)).newbyteorder(self.order)
        if dtype.kind not in _PLAIN_KINDS or dtype.names is not None:
            raise pickle.UnpicklingError(f"an array of {self.code!r}")
        return dtype

    @property
    def holds_objects(self) -> bool:
        return str(self.code) in ("O", "O8", "|O", "object")


class _Array:
    """An array as nested lists."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list = []

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array without type or shape")
        if dtype.holds_objects:
            if not isinstance(data, list) or len(data) != _size(shape):
                raise pickle.UnpicklingError(f"an array of shape {shape} with other objects than these")
            self.values = _nested(data, shape)
            return
        flat = np.frombuffer(_as_bytes(data), dtype.plain())
        self.values = flat.reshape(shape, order="F" if by_columns else "C").tolist()


class _Maker:
    """What a name in the file leads to: it can be called, and not be changed by what the file says."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("a function with a state")


def _scalar(dtype: _Dtype, data: object) -> object:
    return np.frombuffer(_as_bytes(data), dtype.plain(), count=1)[0].item()


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 2 and the older protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _empty() -> bytes:
    """How they write no bytes at all."""
    return b""


_KNOWN: dict[tuple[str, str], _Maker] = {
    ("numpy", "ndarray"): _Maker(_Array),
    ("numpy", "dtype"): _Maker(_Dtype),
    ("_codecs", "encode"): _Maker(_encoded),
    ("__builtin__", "bytes"): _Maker(_empty),
    **{
        (module, name): _Maker(make)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, make in (("_reconstruct", lambda *_: _Array()), ("scalar", _scalar))
    },
}
"""By module and name: before NumPy 2 and since."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'!a}, which could do anything")
        return _KNOWN[module, name]

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it names something outside of the file")


def read_npy_records(path: Path, advance: Advance) -> Iterator[tuple[str, dict]]:
    """Yield (where, record) of a file as `numpy.save` writes an array of dicts, without the header that comes first;
    `where` is for messages: file and record, counted from 1. Memory: the whole file and its records.

    Raises:
        DataError: it cannot be read, is no such file, or holds anything but arrays, dicts, lists, tuples, texts and
            numbers: then nothing of what it says was done.
    """
    with open_annotations(path) as file:
        try:
            data = file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    advance(len(data))
    try:
        records = _records(data)
    except DataError as error:
        raise DataError(f"{path}: {error}; expected {FORM}") from None
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: refused: {error}; expected {FORM}, and in it nothing but arrays, dicts, lists, texts and numbers"
        ) from None
    except Exception as error:  # a pickle's opcodes raise what Python raises where their arguments do not fit
        raise DataError(f"{path}: damaged: {type(error).__name__}: {error}; expected {FORM}") from None
    for number, record in enumerate(records[1:], start=1):
        where = f"{path}: record {number}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: a {type(record).__name__}; expected a dict")
        yield where, record


def _records(data: bytes) -> list:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
        shape, _, dtype = read_header(file, max_header_size=_MAX_HEADER)
    except ValueError as error:
        raise DataError(f"no NumPy file: {' '.join(str(error).split())}") from None
    if not dtype.hasobject or dtype.names is not None or len(shape) != 1:
        raise DataError(f"an array of {dtype} of shape {shape}")
    with _bounded_memory(_BYTES_PER_BYTE * len(data) + _SPARE_BYTES):
        found = _PlainUnpickler(file).load()
    if not isinstance(found, _Array):
        raise DataError(f"a {type(found).__name__} in place of an array")
    return _plain(found.values, {})


@contextmanager
def _bounded_memory(more: int) -> Iterator[None]:
    """Let this process have so many bytes more than it has, where the system can say and hold that (Linux).

    One damaged byte makes a pickle number a value with four bytes of text, and its reader makes a table up to that
    number: tens of gigabytes, for which the system ends the process. Bounded, that is a MemoryError.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    bound = held + more
    if soft != resource.RLIM_INFINITY and soft < bound:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """A value with its arrays and tuples as lists; what stands in it twice, or in itself, is made once."""
    if not isinstance(value, (_Array, dict, list, tuple)):
        return value
    if id(value) not in seen:
        made: Any = {} if isinstance(value, dict) else []
        seen[id(value)] = made
        if isinstance(value, dict):
            made.update((key, _plain(part, seen)) for key, part in value.items())
        else:
            made.extend(_plain(part, seen) for part in (value.values if isinstance(value, _Array) else value))
    return seen[id(value)]


def _as_bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("numbers that are no bytes")
    return data


def _size(shape: tuple) -> int:
    size = 1
    for side in shape:
        size *= int(side)
    return size


def _nested(values: list, shape: tuple) -> list:
    """Values in the order of their rows as lists of lists."""
    for side in reversed(shape[1:]):
        values = [values[start : start + side] for start in range(0, len(values), side)] if side else []
    return values
