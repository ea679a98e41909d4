"""Blocks give what the whole file holds, whatever the size of a block and whatever the texts look like."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.annotations import json_blocks
from shards.annotations.json_blocks import BLOCK, iterate_array, iterate_object
from shards.errors import DataError

untimed = settings(deadline=None, max_examples=60)

texts = st.text(st.sampled_from('ab{}[]",:\\ \n\u00e9\u4e2d\U0001f600'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
layouts = st.sampled_from([{"separators": (",", ":")}, {}, {"indent": 1}, {"ensure_ascii": False}])


class Named(msgspec.Struct):
    name: str
    more: dict[str, str] = {}


def ignored(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blocks") / "file.json"


@untimed
@given(document=st.dictionaries(texts, values, max_size=12), layout=layouts, block=st.integers(1, 200))
def test_blocks_of_any_size_hold_the_members_of_an_object_in_order(path: Path, document, layout, block: int):
    path.write_text(json.dumps(document, **layout))
    blocks = list(iterate_object(path, object, ignored, block=block))
    assert [member for part in blocks for member in part.items()] == list(document.items())


@untimed
@given(document=st.lists(values, max_size=12), layout=layouts, block=st.integers(1, 200))
def test_blocks_of_any_size_hold_the_entries_of_an_array_in_order(path: Path, document, layout, block: int):
    path.write_text(json.dumps(document, **layout))
    assert [entry for part in iterate_array(path, object, ignored, block=block) for entry in part] == document


@untimed
@given(document=st.dictionaries(texts, values, min_size=1, max_size=6), data=st.data(), block=st.integers(1, 100))
def test_a_file_that_ends_too_early_is_never_taken_for_a_whole_one(path: Path, document, data, block: int):
    whole = json.dumps(document).encode()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError, match=r"file\.json: broken JSON at byte \d+: "):
        list(iterate_object(path, object, ignored, block=block))


def test_a_large_file_comes_in_several_blocks_and_every_byte_is_counted(path: Path):
    document = {f"{number:06d}": {"name": "{},[]" * 8, "more": {"a": "}"}} for number in range(4000)}
    path.write_text(json.dumps(document))
    read: list[int] = []
    blocks = list(iterate_object(path, Named, read.append, block=100_000))
    assert len(blocks) > 2
    assert {key: msgspec.to_builtins(value) for part in blocks for key, value in part.items()} == document
    assert sum(read) == path.stat().st_size


def test_members_longer_than_the_first_look_at_the_end_of_a_block_are_whole(path: Path):
    document = [{"name": "x" * 200_000, "more": {str(n): "y" * 50 for n in range(4000)}} for _ in range(3)]
    path.write_text(json.dumps(document))
    blocks = list(iterate_array(path, Named, ignored, block=500_000))
    assert [msgspec.to_builtins(entry) for part in blocks for entry in part] == document
    assert len(blocks) > 1


def test_a_byte_order_mark_is_passed_over(path: Path):
    path.write_bytes(b"\xef\xbb\xbf [1, 2]\n")
    assert list(iterate_array(path, int, ignored)) == [[1, 2]]


@pytest.mark.parametrize("block", [8, BLOCK])
def test_a_member_of_the_wrong_type_is_named(path: Path, block: int):
    path.write_text(json.dumps({"a": {"name": "x"}, "b": {"name": 7}, "c": {"name": "y"}}))
    with pytest.raises(DataError, match=r"file\.json: 'b': Expected `str`, got `int` - at `\$\.name`$"):
        list(iterate_object(path, Named, ignored, block=block))
    path.write_text(json.dumps([{"name": "x"}, {"name": "y"}, {"nam": "z"}]))
    with pytest.raises(DataError, match=r"file\.json: entry 3: Object missing required field `name`"):
        list(iterate_array(path, Named, ignored, block=block))


@pytest.mark.parametrize("block", [4, BLOCK])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "byte 0: expected a JSON array of records, found the end of the file"),
        (b' {"a": 1}', "byte 1: expected a JSON array of records, found '{'"),
        (b"[1, 2, x]", "byte 7: JSON is malformed: invalid character"),
        (b"[1, 2", "byte 5: Input data was truncated"),
        (b"[1, 2,]", "byte 6: "),
        (b"[1, 2] 3", "byte 8: JSON is malformed: trailing characters"),
        (b"[" * 100_000, r"byte \d+: "),
    ],
)
def test_broken_json_is_located(path: Path, text: bytes, message: str, block: int):
    path.write_bytes(text)
    with pytest.raises(DataError, match=rf"file\.json: broken JSON at {message}"):
        list(iterate_array(path, object, ignored, block=block))


@pytest.mark.parametrize("block", [4, BLOCK])
def test_text_that_is_not_utf_8_is_located(path: Path, block: int):
    path.write_bytes(b'["a", "b", "\xff", "d"]')
    with pytest.raises(DataError, match=r"file\.json: entry 3: .*(utf|UTF)-8"):
        list(iterate_array(path, object, ignored, block=block))


def test_a_file_that_is_a_single_giant_record_is_refused_before_it_fills_the_memory(path: Path, monkeypatch):
    monkeypatch.setattr(json_blocks, "LONGEST_MEMBER", 1 << 20)
    path.write_bytes(b'["' + b"x" * (4 << 20) + b'"]')
    with pytest.raises(DataError, match="a record longer than 1 MiB"):
        list(iterate_array(path, object, ignored, block=1 << 16))


def test_what_cannot_be_opened_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        list(iterate_array(tmp_path / "none.json", object, ignored))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(iterate_array(tmp_path, object, ignored))
