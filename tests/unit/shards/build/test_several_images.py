"""Samples of two images: their members, what the index says of them, and every fault in either."""

import hashlib
import json
import tarfile
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET
from PIL import Image

from shards.annotations import READERS
from shards.build.verify import verify_shards
from shards.build.writer import build_shards
from shards.format.index import INDEX_NAME, encode_index, read_index
from shards.format.tar_reader import ShardReader
from tests.corpora import SMALL_SHARD, build_corpus
from tests.official import Official
from tests.task_corpora import CORPORA, SIZE
from trainer.cli import main

NUM_PAIRS = 8


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` takes as many as there are cores, and to start them takes longer than all else here."""
    monkeypatch.setattr("shards.build.commands._cores", lambda: 1)


@pytest.fixture
def files(tmp_path: Path) -> Official:
    return CORPORA["nlvr2"](tmp_path / "files", num_samples=NUM_PAIRS, seed=0)


@pytest.fixture
def built(files: Official, tmp_path: Path) -> Path:
    return files.build(tmp_path / "shards")


def second_image(files: Official, number: int = 0) -> Path:
    return sorted(files.images.glob("*/*-img1.png"))[number]


def test_members_of_a_sample_stand_together_images_first(built: Path):
    index, key = read_index(built), 0
    assert len(index.shards) > 1
    for shard in index.shards:
        with tarfile.open(built / shard.name) as tar:
            names = tar.getnames()
        expected = []
        for _ in shard.image_ids:
            expected += [f"{key:09d}.0.png", f"{key:09d}.1.png", f"{key:09d}.json"]
            key += 1
        assert names == expected
    assert key == NUM_PAIRS


def test_the_index_counts_images_of_samples_where_there_are_several(built: Path):
    for shard in read_index(built).shards:
        samples = len(shard.image_ids)
        assert shard.images_per_sample == [2] * samples
        assert len(shard.image_refs) == len(shard.image_offsets) == len(shard.image_formats) == 2 * samples
        assert [ref.rpartition("-img")[2] for ref in shard.image_refs] == ["0", "1"] * samples
        assert [ref.partition("/")[2].rpartition("-")[0] for ref in shard.image_refs[::2]] == shard.image_ids


def test_an_index_of_single_images_does_not_speak_of_it(tmp_path: Path):
    directory, _ = build_corpus(tmp_path)
    assert b"images_per_sample" not in (directory / INDEX_NAME).read_bytes()
    for task in CORPORA.keys() - {"nlvr2", "mpdocvqa"}:
        shards = CORPORA[task](tmp_path / task, num_samples=4, seed=0).build(tmp_path / task / "shards")
        assert b"images_per_sample" not in (shards / INDEX_NAME).read_bytes()


def test_images_come_back_in_their_order_with_their_bytes(built: Path, files: Official):
    index = read_index(built)
    reader = ShardReader(built, index, READERS["nlvr2"].sample)
    for number in range(NUM_PAIRS):
        sample = reader.sample(number)
        paths = [next(files.images.glob(f"*/{sample.sample_id}-img{place}.png")) for place in range(2)]
        assert reader.images(number) == [path.read_bytes() for path in paths]
        assert [picture.image_id for picture in sample.pictures] == [
            f"{path.parent.name}/{path.stem}" for path in paths
        ]
        assert {(picture.width, picture.height) for picture in sample.pictures} == {SIZE}


def test_webdataset_reads_a_sample_with_both_images(built: Path):
    wds = pytest.importorskip("webdataset")
    urls = sorted(map(str, built.glob("*.tar")))
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(NUM_PAIRS)]
    reader = ShardReader(built, read_index(built), READERS["nlvr2"].sample)
    for number, sample in enumerate(samples):
        assert [sample["0.png"], sample["1.png"]] == reader.images(number)
        assert json.loads(sample["json"])["scene_id"] == reader.sample(number).sample_id


def test_images_can_be_of_different_kinds_and_smaller(files: Official, tmp_path: Path):
    other = second_image(files)
    Image.open(other).save(other.with_suffix(".jpg"))
    other.unlink()
    index = read_index(files.build(tmp_path / "mixed"))
    assert index.shards[0].image_formats[:2] == ["png", "jpg"]
    assert verify_shards(tmp_path / "mixed").faults == []
    asked = {"format": "nlvr2", "questions": files.questions, "images": files.images, "shard_bytes": SMALL_SHARD}
    build_shards(**asked, out=tmp_path / "small", resize=16)
    assert verify_shards(tmp_path / "small").faults == []


@pytest.mark.parametrize("place", [0, 1])
def test_a_flipped_byte_in_either_image_is_found(built: Path, place: int):
    shard = read_index(built).shards[0]
    path, at = built / shard.name, shard.image_offsets[2 + place] + 40
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    faults = verify_shards(built).faults
    assert any(f"{shard.name}: sha256 " in fault for fault in faults)
    assert any(f"{shard.name}: 000000001.{place}.png" in fault for fault in faults)
    assert main(["shards", "verify", str(built)]) == 2


def test_a_second_image_that_is_missing_is_named(files: Official, tmp_path: Path, capsys):
    gone, out = second_image(files), tmp_path / "out"
    gone.unlink()
    assert main(files.words(out)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    pair = gone.stem.removesuffix("-img1")
    assert f"{gone.parent.name}/{gone.stem}" in line
    assert f"(image '{pair}')" in line
    assert line.endswith(f"missing are 1 of {NUM_PAIRS} images; --on-missing skip leaves them out")
    assert not out.exists()


@pytest.mark.parametrize("reason", ["missing", "unreadable"])
def test_a_pair_with_one_image_that_cannot_be_used_is_left_out_whole(
    files: Official, tmp_path: Path, reason: str, capsys
):
    bad, out = second_image(files, 3), tmp_path / "out"
    bad.unlink() if reason == "missing" else bad.write_bytes(b"no picture")
    assert main([*files.words(out), "--on-missing", "skip"]) == 0
    index, pair = read_index(out), bad.stem.removesuffix("-img1")
    (skipped,) = index.skipped
    assert (skipped.image_id, skipped.reason) == (pair, reason)
    assert skipped.image_ref == f"{bad.parent.name}/{bad.stem}"
    assert skipped.image_refs == [f"{bad.parent.name}/{pair}-img{place}" for place in range(2)]
    assert index.num_images == NUM_PAIRS - 1
    assert index.counts[f"{reason}_images"] == 1
    assert index.counts["skipped_questions"] == skipped.num_questions > 0
    assert pair not in [name for shard in index.shards for name in shard.image_ids]
    assert verify_shards(out).faults == []
    capsys.readouterr()
    assert main([*files.words(out), "--on-missing", "skip"]) == 0
    assert "already built" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0, 1])
def test_another_picture_in_either_place_makes_another_build(files: Official, built: Path, place: int, capsys):
    digest = read_index(built).images_sha256
    paths = sorted(files.images.glob(f"*/*-img{place}.png"))
    paths[0].write_bytes(paths[1].read_bytes())
    capsys.readouterr()
    assert main(files.words(built)) == 0
    assert "built: " in capsys.readouterr().out
    assert read_index(built).images_sha256 != digest
    assert verify_shards(built).faults == []


def test_exchanged_images_of_a_pair_are_another_pair(files: Official, built: Path):
    """The fingerprint says which image is which."""
    digest = read_index(built).images_sha256
    other, one = second_image(files), second_image(files).with_name(second_image(files).name.replace("img1", "img0"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert hashlib.sha256(first).digest() != hashlib.sha256(second).digest()
    files.build(built)
    assert read_index(built).images_sha256 != digest


@pytest.mark.parametrize("counts", [UNSET, [1, 2, 2, 2, 2, 2]])
def test_counts_of_images_that_do_not_fit_the_other_lists_are_a_fault(built: Path, counts: list[int]):
    index = read_index(built)
    first = msgspec.structs.replace(index.shards[0], images_per_sample=counts)
    changed = msgspec.structs.replace(index, shards=[first, *index.shards[1:]])
    (built / INDEX_NAME).write_bytes(encode_index(changed))
    assert len(first.image_ids) == 6
    faults = verify_shards(built).faults
    num_images = 6 if counts is UNSET else 11
    assert f"{INDEX_NAME}: 000000.tar: 12 image_offsets for {num_images} images" in faults
