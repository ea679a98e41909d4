"""Records of a NumPy file: what `numpy.save` writes comes back as plain data, and nothing in a file is ever done."""

import io
import os
import pickle
import pickletools
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.annotations.npy_records import read_npy_records
from shards.errors import DataError

HEADER = {"version": 0.1}


class Call:
    """Is pickled as a call."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.how = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.how


def saved(path: Path, *records: Any, protocol: int | None = None) -> Path:
    """An array of objects as a file, its pickle in the protocol of `numpy.save` or in another one."""
    content = np.empty(len(records) + 1, dtype=object)
    content[:] = [HEADER, *records]
    if protocol is None:
        np.save(path, content, allow_pickle=True)
        return path
    return written(path, pickle.dumps(content, protocol=protocol))


def written(path: Path, pickled: bytes, header: dict | None = None) -> Path:
    file = io.BytesIO()
    head = {"descr": "|O", "fortran_order": False, "shape": (2,)} | (header or {})
    np.lib.format.write_array_header_1_0(file, head)
    path.write_bytes(file.getvalue() + pickled)
    return path


def records_of(path: Path) -> list[dict]:
    return [record for _, record in read_npy_records(path, lambda _: None)]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        records_of(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


RECORD = {
    "id": np.int64(7),
    "name": np.str_("päge"),
    "part": np.float32(0.5),
    "flag": np.bool_(True),
    "none": None,
    "tuple": (1, 2.5, "three", b"four"),
    "words": np.array(["a", "bcd"]),
    "objects": np.array([["a", 1], [None, ["b"]]], dtype=object),
    "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "nothing": np.zeros((0, 4), dtype=np.float32),
}
PLAIN = {
    "id": 7,
    "name": "päge",
    "part": 0.5,
    "flag": True,
    "none": None,
    "tuple": [1, 2.5, "three", b"four"],
    "words": ["a", "bcd"],
    "objects": [["a", 1], [None, ["b"]]],
    "boxes": [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]],
    "columns": [[0, 1, 2], [3, 4, 5]],
    "big": [0, 1, 2],
    "nothing": [],
}


@pytest.mark.parametrize("protocol", [None, 0, 1, 2, 3, 4])
def test_what_numpy_writes_comes_back_as_plain_data(tmp_path: Path, protocol: int | None):
    assert records_of(saved(tmp_path / "a.npy", RECORD, {}, protocol=protocol)) == [PLAIN, {}]


def test_names_of_numpy_before_its_second_version_are_known(tmp_path: Path):
    path = saved(tmp_path / "a.npy", RECORD)
    data = path.read_bytes()
    old = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
    frame = old.index(b"\x80\x04\x95") + 3
    size = int.from_bytes(old[frame : frame + 8], "little") - (len(data) - len(old))
    path.write_bytes(old[:frame] + size.to_bytes(8, "little") + old[frame + 8 :])
    assert b"numpy._core" not in path.read_bytes()
    assert records_of(path) == [PLAIN]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    )
)
def test_lists_and_dicts_come_back_equal(tmp_path_factory: pytest.TempPathFactory, value: object):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    assert records_of(saved(path, {"value": value})) == [{"value": value}]


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "call",
    [
        lambda path: Call(os.system, f"touch {path}"),
        lambda path: Call(os.mkdir, str(path)),
        lambda path: Call(eval, f"open({str(path)!r}, 'w')"),
        lambda path: Call(getattr, str(path), "upper"),
        lambda path: Call(np.load, str(path)),
        lambda path: Call(Path, str(path)),
    ],
)
def test_what_a_file_asks_to_be_done_is_not_done(tmp_path: Path, call: Callable[[Path], Call], protocol: int):
    canary = tmp_path / "canary"
    message = refused(saved(tmp_path / "a.npy", {"x": call(canary)}, protocol=protocol))
    assert "refused: it names " in message
    assert not canary.exists()


def test_a_name_cannot_break_the_message(tmp_path: Path):
    pickled = b"\x80\x04\x8c\x05o\ns\x1bx\x8c\x03a\nb\x93."
    assert "it names 'o\\ns\\x1bx.a\\nb'" in refused(written(tmp_path / "a.npy", pickled))


def _object_type(flags: int) -> Call:
    """The type of objects as if it held numbers: with it NumPy would take bytes of the file for addresses."""
    return Call(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, flags))


@pytest.mark.parametrize("flags", [0, 63])
def test_numbers_are_never_taken_for_objects(tmp_path: Path, flags: int):
    state = (1, (1,), _object_type(flags), False, b"\x41" * 8)
    array = Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=state)
    assert "with other objects than these" in refused(saved(tmp_path / "a.npy", {"x": array}))
    scalar = Call(np._core.multiarray.scalar, _object_type(flags), b"\x41" * 8)
    assert "an array of 'O8'" in refused(saved(tmp_path / "b.npy", {"x": scalar}))


@pytest.mark.parametrize("code", ["O", "i4,O", "(2,)O", "M8[s]", "V8"])
def test_types_that_are_no_plain_ones_are_refused(tmp_path: Path, code: str):
    scalar = Call(np._core.multiarray.scalar, Call(np.dtype, code), b"\x41" * 16)
    assert "refused: an array of " in refused(saved(tmp_path / "a.npy", {"x": scalar}))


def test_the_stand_ins_cannot_be_changed_by_a_file(tmp_path: Path):
    changed = b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93}\x8c\x05_make\x8c\x01xsb."
    assert "a function with a state" in refused(written(tmp_path / "a.npy", changed))
    assert any(opcode.name == "BUILD" for opcode, _, _ in pickletools.genops(changed))
    assert records_of(saved(tmp_path / "b.npy", RECORD)) == [PLAIN]


def test_what_contains_itself_or_is_repeated_does_not_grow(tmp_path: Path):
    endless: list = []
    endless.append(endless)
    (record,) = records_of(saved(tmp_path / "a.npy", {"x": endless}))
    assert record["x"][0] is record["x"]
    laugh: list = ["ha"]
    for _ in range(60):
        laugh = [laugh] * 10
    (record,) = records_of(saved(tmp_path / "b.npy", {"x": laugh}))
    assert record["x"][0] is record["x"][9]


def test_every_cut_of_a_file_is_one_line(tmp_path: Path):
    whole = saved(tmp_path / "whole.npy", {"a": np.arange(3), "b": ["c"]}).read_bytes()
    path = tmp_path / "a.npy"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        refused(path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say what a process holds")
def test_a_number_that_would_take_all_memory_is_a_fault_of_the_file(tmp_path: Path):
    path = saved(tmp_path / "a.npy", RECORD)
    header = path.read_bytes().partition(b"\n")[0]
    path.write_bytes(header + b"\n\x80\x02]r\xff\xff\xff\x7f.")  # a list, remembered as number 2^31 - 1
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert "damaged: MemoryError" in refused(path)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@given(st.data())
def test_a_damaged_byte_is_a_fault_of_the_file_or_other_data(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = saved(tmp_path_factory.mktemp("npy") / "a.npy", RECORD)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DataError):  # what is damaged may still be data
        records_of(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.arange(3), "an array of int64 of shape (3,)"),
        (np.array([[{}, {}]], dtype=object), "an array of object of shape (1, 2)"),
        (np.array([HEADER, "no record"], dtype=object), "record 1: a str; expected a dict"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, content: np.ndarray, said: str):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    assert said in refused(tmp_path / "a.npy")


def test_files_of_other_kinds_are_refused(tmp_path: Path):
    (tmp_path / "a.npy").write_text("{}")
    assert "no NumPy file" in refused(tmp_path / "a.npy")
    assert "cannot be read: No such file or directory" in refused(tmp_path / "gone.npy")
    assert "a dict in place of an array" in refused(written(tmp_path / "b.npy", pickle.dumps({})))
