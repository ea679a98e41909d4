"""Columns say what index and shards say, whoever maps them; shards without them are read as before."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.build.columns import upgrade
from shards.build.verify import verify_shards
from shards.errors import DataError
from shards.format.columns import COLUMNS_NAME, SAMPLE_COLUMNS, Columns, ItemColumns, columns_of, write_columns
from shards.format.index import SplitIndex, encode_index, index_digest, open_index, read_index
from shards.format.records import text_hash
from shards.format.tar_reader import ShardReader
from tests.corpora import build_corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SplitIndex]:
    return build_corpus(tmp_path_factory.mktemp("columns"), num_images=12, questions_per_image=7)


@pytest.fixture
def old(built: tuple[Path, SplitIndex], tmp_path: Path) -> Path:
    """The same shards as a build of before made them."""
    directory = tmp_path / "old"
    shutil.copytree(built[0], directory)
    (directory / COLUMNS_NAME).unlink()
    return directory


def test_what_is_mapped_is_what_the_index_lists(built: tuple[Path, SplitIndex]) -> None:
    directory, index = built
    light = open_index(directory)
    assert light.columns.path == directory / COLUMNS_NAME
    for name in SAMPLE_COLUMNS:
        assert np.array_equal(getattr(light.columns, name), getattr(index.columns, name)), name
    assert [shard.sha256 for shard in light.shards] == [shard.sha256 for shard in index.shards]
    assert (light.answers, light.groups, light.counts, light.digest) == (
        index.answers,
        index.groups,
        index.counts,
        read_index(directory).digest,
    )
    assert not any(shard.image_ids for shard in light.shards)
    ids = [name for shard in index.shards for name in shard.image_ids]
    assert [light.columns.id_of(sample) for sample in range(len(ids))] == ids


def test_items_and_hashes_are_the_same_with_columns_and_without(built: tuple[Path, SplitIndex], old: Path) -> None:
    mapped, listed = (ShardReader(directory, open_index(directory)) for directory in (built[0], old))
    assert listed.index.columns.item_offset is None
    for sample in range(12):
        items = mapped.sample(sample).items
        positions = list(range(len(items)))[::-1]
        assert mapped.items(sample, positions) == listed.items(sample, positions) == list(items)[::-1]
        assert mapped.text_hashes(sample) == listed.text_hashes(sample) == {text_hash(i.question) for i in items}
        hashes = [[reader.text_hash(sample, place) for place in positions] for reader in (mapped, listed)]
        assert hashes[0] == hashes[1]
        assert mapped.images(sample) == listed.images(sample)
        assert mapped.describe(sample).split(": ")[1] == listed.describe(sample).split(": ")[1]


def test_a_negative_is_one_small_read(built: tuple[Path, SplitIndex], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the annotations of a whole image, of which 10,000 questions have 5 MB."""
    directory, index = built
    sizes: list[int] = []
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: sizes.append(size) or read(file, size, offset))
    reader = ShardReader(directory, open_index(directory))
    sample = int(np.argmax(index.num_questions))
    reader.text_hashes(sample)
    assert not sizes, "hashes are mapped"
    (item,) = reader.items(sample, [3])
    assert len(sizes) == 1
    assert sizes[0] < index.columns.json_bytes[sample] / 3
    assert item == reader.sample(sample).items[3]


def test_an_upgrade_makes_what_a_build_makes_and_leaves_the_rest(built: tuple[Path, SplitIndex], old: Path) -> None:
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    assert upgrade(old)
    after = {path.name: path.read_bytes() for path in old.iterdir()}
    assert after.pop(COLUMNS_NAME) == (built[0] / COLUMNS_NAME).read_bytes()
    assert after == before
    assert not upgrade(old)
    assert verify_shards(old).faults == []


def test_columns_of_another_index_are_not_used_and_one_line_says_so(
    built: tuple[Path, SplitIndex], old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = read_index(old)
    other.counts["duplicate_questions"] += 1
    (old / "index.json").write_bytes(encode_index(other))
    shutil.copy(built[0] / COLUMNS_NAME, old)
    with caplog.at_level(logging.WARNING):
        assert open_index(old).columns.path is None
    (line,) = caplog.messages
    assert "belongs to another index" in line
    assert "duoflow shards upgrade" in line
    (fault,) = [fault for fault in verify_shards(old).faults if COLUMNS_NAME in fault]
    assert "belongs to another index" in fault
    assert upgrade(old)
    assert open_index(old).columns.path is not None


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: data[:-64], "bytes; expected"),
        (lambda data: data[:40], "damaged"),
        (lambda data: data.replace(b'"index_digest"', b'"index_Digest"'), "damaged"),
        (lambda data: data[:0], "damaged"),
    ],
)
def test_damaged_columns_are_refused_in_one_line_with_the_way_out(
    built: tuple[Path, SplitIndex], old: Path, damage, what: str
) -> None:
    (old / COLUMNS_NAME).write_bytes(damage((built[0] / COLUMNS_NAME).read_bytes()))
    with pytest.raises(DataError, match=rf"{COLUMNS_NAME}: .*{what}.*duoflow shards upgrade"):
        open_index(old)
    assert upgrade(old)
    assert verify_shards(old).faults == []


def test_annotations_that_no_build_wrote_are_refused_and_nothing_is_left(old: Path) -> None:
    index = read_index(old)
    shard = index.shards[0]
    with (old / shard.name).open("r+b") as file:
        file.seek(shard.json_offsets[0] + shard.json_bytes[0] - 1)
        file.write(b"]")
    with pytest.raises(DataError, match=rf"{shard.name}: image '{shard.image_ids[0]}': .*shards verify"):
        upgrade(old)
    assert not [path for path in old.iterdir() if "columns" in path.name]


def test_a_process_that_is_sent_an_index_maps_the_file_itself(built: tuple[Path, SplitIndex], old: Path) -> None:
    light = open_index(built[0])
    sent = pickle.dumps(light)
    received = pickle.loads(sent)
    assert received == light
    assert received.columns.path == light.columns.path
    assert np.array_equal(received.columns.json_offset, light.columns.json_offset)
    listed = open_index(old)
    assert np.array_equal(pickle.loads(pickle.dumps(listed)).columns.ids, listed.columns.ids)


def test_the_digest_of_an_index_is_that_of_its_file(built: tuple[Path, SplitIndex], old: Path) -> None:
    assert index_digest(built[0]) == index_digest(old)


def test_a_million_tiny_images_are_opened_without_a_list_of_them(tmp_path: Path, built: tuple) -> None:
    """The index of so many has 84 MB as JSON and 350 MB in memory; what is sent to a worker must not grow with it."""
    count, shards = 1_000_000, 20
    edges = np.arange(0, count + 1, count // shards, dtype="<i8")
    every = np.arange(count + 1, dtype="<i8")
    made = Columns(
        first_sample=edges,
        json_offset=every[:-1] * 2048,
        json_bytes=np.full(count, 300, "<u4"),
        num_items=np.ones(count, "<i4"),
        first_item=every,
        first_image=None,
        image_offset=every[:-1] * 2048 + 1024,
        image_bytes=np.full(count, 500, "<u4"),
        id_end=every * 7,
        ids=np.full(count * 7, ord("1"), "u1"),
    )
    index = built[1]
    nothing = ItemColumns(bytes(4 * count), bytes(8 * count))
    text = encode_index(index)
    (tmp_path / "index.json").write_bytes(text)
    digest = read_index(tmp_path).digest
    light = encode_index(index.without_lists(columns_of([])))
    write_columns(tmp_path / COLUMNS_NAME, made, [nothing], index=light, digest=digest, file_sha256="0" * 64)
    opened = open_index(tmp_path)
    assert (opened.num_images, opened.columns.id_of(count - 1), opened.locate(999_999)) == (
        count,
        "1111111",
        (19, 49_999),
    )
    assert len(pickle.dumps(opened)) < 100_000
