"""A fault in what a build is given is one clear line, and leaves nothing."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from shards.build import writer
from shards.build.output_directory import STAGING_NAME
from shards.build.packing import map_in_order
from shards.build.writer import build_shards
from shards.errors import ConfigError, DataError, UserError
from shards.format.images import MAX_PIXELS
from shards.format.index import read_index
from tests.unit.shards.build.builds import arguments, contents, edit_questions, make_read_only, some_image


def test_a_missing_image_is_named_before_any_packing(corpus, tmp_path):
    for path in sorted(corpus.images.iterdir())[:2]:
        path.unlink()
    with pytest.raises(DataError, match=r"images: no image 01000\{.jpg,.*missing are 2 of 9 images; --on-missing skip"):
        build_shards(**arguments(corpus, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def bomb() -> bytes:
    target = io.BytesIO()
    Image.new("1", (MAX_PIXELS // 1000, 1001)).save(target, "PNG")
    return target.getvalue()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda data: data[: len(data) * 2 // 3], "cannot be decoded: "),
        (lambda _: b"<html>", "not a JPEG, PNG or WebP image"),
        (lambda _: b"", "not a JPEG, PNG or WebP image"),
        (lambda _: bomb(), f"25000 x 1001 pixels; expected at most {MAX_PIXELS}"),
        (lambda _: b"GIF89a\1\0\1\0\0\0\0;", "not a JPEG, PNG or WebP image"),
    ],
    ids=["truncated", "text", "empty", "bomb", "gif"],
)
@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_an_unreadable_image_is_one_clear_line(corpus, tmp_path, make, what, ending):
    path = some_image(corpus, ending)
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{path.name}: {what}.*--on-missing skip") as caught:
        build_shards(**arguments(corpus, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_skipped_images_and_their_questions_are_counted(corpus, tmp_path):
    whole = build_shards(**arguments(corpus, tmp_path / "whole"))
    missing, unreadable = some_image(corpus, ".jpg"), some_image(corpus, ".png")
    missing.unlink()
    unreadable.write_bytes(b"no")
    index = build_shards(**arguments(corpus, tmp_path / "out", on_missing="skip"))
    assert {(image.image_id, image.reason) for image in index.skipped} == {
        (missing.stem, "missing"),
        (unreadable.stem, "unreadable"),
    }
    assert index.counts["missing_images"] == index.counts["unreadable_images"] == 1
    assert index.counts["images"] == whole.counts["images"] - 2
    assert index.counts["questions"] + index.counts["skipped_questions"] == whole.counts["questions"]
    assert read_index(tmp_path / "out") == index


def test_no_usable_image_at_all_is_an_error(corpus, tmp_path):
    for path in corpus.images.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of 9 images can be used"):
        build_shards(**arguments(corpus, tmp_path / "out", on_missing="skip"))


@pytest.mark.parametrize("image", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg"])
@pytest.mark.parametrize("on_missing", ["fail", "skip"])
def test_a_path_out_of_the_image_directory_is_refused(corpus, tmp_path, image, on_missing):
    shutil.copy(some_image(corpus, ".jpg"), corpus.directory / "secret.jpg")
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps({"image": image, "question": "?", "answer": "!"}))
    with pytest.raises(DataError, match="leads out of the image directory"):
        build_shards(**arguments(corpus, tmp_path / "out", format="jsonl", questions=[table], on_missing=on_missing))


@pytest.mark.parametrize("field", ["answer", "imageId"])
def test_one_id_with_two_contents_is_refused(corpus, tmp_path, field):
    records = json.loads(corpus.questions.read_text())
    name = next(iter(records))
    records[name][field] = "1001"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({name: records[name]}))
    with pytest.raises(DataError, match=f"question id '{name}' occurs with different content .*other.json"):
        build_shards(**arguments(corpus, tmp_path / "out", questions=[corpus.questions, other]))


def test_one_image_id_for_two_files_is_refused(corpus, tmp_path):
    table = tmp_path / "rows.jsonl"
    rows = [{"image": n, "image_id": "7", "question": "?", "answer": n} for n in ("01000.jpg", "1001.png")]
    table.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"image id '7' stands for two files, '01000.jpg' and '1001.png'"):
        build_shards(**arguments(corpus, tmp_path / "out", format="jsonl", questions=[table]))


def test_half_a_surrogate_pair_is_refused(corpus, tmp_path):
    edit_questions(corpus, lambda records: next(iter(records.values())).update(answer="\ud800"))
    with pytest.raises(DataError, match="question '0000000' of image '01000'"):
        build_shards(**arguments(corpus, tmp_path / "out"))


def test_broken_json_leaves_nothing(corpus, tmp_path):
    corpus.questions.write_text(corpus.questions.read_text()[:-50])
    with pytest.raises(DataError, match=r"questions\.json: broken JSON at byte \d+"):
        build_shards(**arguments(corpus, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ({"format": "tsv"}, ConfigError, "--format tsv: no such format; expected one of gqa, jsonl, csv"),
        ({"limit": 0}, ConfigError, "--limit 0: expected at least 1"),
        ({"resize": -1}, ConfigError, "--resize -1: expected at least 1"),
        ({"engine": "dask"}, ConfigError, "--engine dask: expected local or ray"),
        ({"ray_address": "head:6379"}, ConfigError, "--ray-address head:6379: belongs to --engine ray"),
        ({"questions": []}, ConfigError, "--questions: no files given"),
        ({"questions": [Path("/nowhere/q.json")]}, DataError, r"/nowhere/q\.json: cannot be read: No such file"),
        ({"images": Path("/nowhere")}, DataError, "--images /nowhere: no such directory"),
        ({"scene_graphs": Path("s.json"), "format": "csv"}, ConfigError, "--scene-graphs: belongs to --format gqa"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(corpus, tmp_path, change, kind, what):
    with pytest.raises(kind, match=what):
        build_shards(**arguments(corpus, tmp_path / "out", **change))


def test_a_cluster_without_ray_is_one_line(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "shards.build.ray_engine", raising=False)
    with pytest.raises(UserError, match="--engine ray: Ray is not installed; pip install"):
        build_shards(**arguments(corpus, tmp_path / "out", engine="ray"))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(corpus, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.TarShards, "add", full)
    with pytest.raises(DataError, match=r"out: No space left on device; nothing was changed; .*with room"):
        build_shards(**arguments(corpus, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["/dev/null/out", "/sys/duoflow-out", "/dev/null"])
def test_an_output_that_cannot_be_made_is_one_line(corpus, out):
    with pytest.raises(DataError, match=rf"{out}: .*; nothing was changed; .*choose another --out") as caught:
        build_shards(**arguments(corpus, Path(out)))
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_written_is_one_line(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    make_read_only(out, monkeypatch)
    with pytest.raises(DataError, match=rf"out/{STAGING_NAME}: Read-only file system; .*choose another --out"):
        build_shards(**arguments(corpus, out))
    assert contents(out) == {}


def test_chunks_that_cannot_be_listed_are_one_line(corpus, tmp_path, monkeypatch):
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "chunks").mkdir()
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(DataError, match="chunks: cannot be read: Permission denied"):
        build_shards(**arguments(corpus, tmp_path / "out", questions=[tmp_path / "chunks"]))


def test_a_killed_worker_is_one_line():
    with pytest.raises(UserError, match="one of 2 processes was killed"):
        list(map_in_order(os._exit, [9, 9], 2))
