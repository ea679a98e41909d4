"""Reading by offset: every fault is one line that names the shard, and few files are open."""

import errno
import gc
import os
import random
import shutil
from pathlib import Path

import msgspec
import pytest

from shards.errors import DataError
from shards.format import files, tar_reader
from shards.format.index import SplitIndex
from shards.format.records import decode_sample, text_hash
from shards.format.tar_reader import ShardReader
from tests.corpora import build_corpus

BOUND = 3


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SplitIndex]:
    """Twelve shards of one image each."""
    directory, index = build_corpus(tmp_path_factory.mktemp("built"), num_images=12, shard_bytes=1)
    assert len(index.shards) == 12
    return directory, index


def open_inside(directory: Path) -> int:
    """Descriptors of this process that lead to a file of the directory."""
    names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(name) and Path(os.readlink(name)).parent == directory for name in names)


@pytest.mark.parametrize("data", [b'{"image_id":"\xff"}', b'{"other":' + b"[" * 5000, b'{"image_id":"1"', b"[]"])
def test_whatever_is_no_sample_is_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_sample(data)


def test_text_that_is_no_utf_8_is_named_with_shard_image_and_way_out(
    built: tuple[Path, SplitIndex], tmp_path: Path
) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(built[0], directory)
    shard = built[1].shards[4]
    data = bytearray((directory / shard.name).read_bytes())
    data[data.index(b'"question":"', shard.json_offsets[0]) + len(b'"question":"')] = 0xFF
    (directory / shard.name).write_bytes(data)
    with pytest.raises(
        DataError, match=rf"{shard.name}: image '{shard.image_ids[0]}': damaged .*(?i:utf)-8.*shards verify"
    ):
        ShardReader(directory, built[1]).sample(4)


@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("method", ["sample", "images"])
def test_a_disk_or_mount_that_fails_is_one_line(
    built: tuple[Path, SplitIndex], monkeypatch: pytest.MonkeyPatch, call: str, method: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    reader = ShardReader(*built)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(DataError, match=r"000002\.tar: cannot be read at byte \d+: Input/output error; see to"):
            getattr(reader, method)(2)
    assert getattr(reader, method)(2) == getattr(ShardReader(*built), method)(2)


def test_few_shards_are_open_whatever_the_order_and_the_bytes_are_right(
    built: tuple[Path, SplitIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, index = built
    expected = [ShardReader(directory, index).images(image)[0] for image in range(12)]
    monkeypatch.setattr(files, "OPEN_SHARDS", BOUND)
    gc.collect()
    assert open_inside(directory) == 0, "a reader closes its files when it is gone"
    reader, most = ShardReader(directory, index), 0
    for image in [*range(12), *reversed(range(12)), *random.Random(0).choices(range(12), k=60)]:
        assert reader.images(image)[0] == expected[image]
        most = max(most, open_inside(directory))
    assert most == BOUND


def test_the_shards_used_last_stay_open(built: tuple[Path, SplitIndex], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_file = os.open

    def counting(path: Path, *more: int) -> int:
        opened.append(path.name)
        return open_file(path, *more)

    monkeypatch.setattr(files, "OPEN_SHARDS", BOUND)
    reader = ShardReader(*built)
    monkeypatch.setattr(os, "open", counting)
    for image in (0, 1, 2, 0, 3, 0, 1):
        reader.images(image)[0]
    assert opened == ["000000.tar", "000001.tar", "000002.tar", "000003.tar", "000001.tar"]


def test_items_are_those_of_the_whole_sample_and_hash_as_their_texts(built: tuple[Path, SplitIndex]) -> None:
    reader = ShardReader(*built)
    for number in range(12):
        items = reader.sample(number).items
        backwards = range(len(items) - 1, -1, -1)
        assert reader.items(number, backwards) == list(items)[::-1]
        hashes = [reader.text_hash(number, position) for position in range(len(items))]
        assert hashes == [text_hash(f"  {item.question.upper()} ") for item in items]
        assert reader.text_hashes(number) == set(hashes)


def test_annotations_are_kept_up_to_a_number_of_bytes(
    built: tuple[Path, SplitIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand samples of 10,000 questions each would take 16 GB in every process."""
    reads: list[int] = []
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(1) or read(*arguments))
    reader, twice = ShardReader(*built), [*range(12), *range(12)]
    for number in twice:
        reader.items(number, [0])
    assert len(reads) == 12, "all fit"
    monkeypatch.setattr(tar_reader, "KEPT_BYTES", 2_000)
    reads.clear()
    reader = ShardReader(*built)
    for number in twice:
        reader.items(number, [0])
        assert reader._kept_bytes <= 2_000 or len(reader._kept) == 1
    assert len(reads) == 24, "the ones used last do not come again"
