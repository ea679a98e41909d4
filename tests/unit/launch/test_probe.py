"""A probe tells code and shards apart that differ, and needs no more than the standard library."""

import hashlib
import json
from pathlib import Path

from launch.probe import look_at_split, probe


def write_split(directory: Path, sizes: dict[str, int]) -> None:
    directory.mkdir()
    for name, size in sizes.items():
        (directory / name).write_bytes(b"x" * size)
    shards = [{"name": name, "bytes": size} for name, size in sizes.items()]
    (directory / "index.json").write_text(json.dumps({"shards": shards}))


def test_a_split_is_whole_until_a_shard_is_missing_or_cut_off(tmp_path: Path):
    split = tmp_path / "train"
    write_split(split, {"00.tar": 10, "01.tar": 20, "02.tar": 30})
    digest = hashlib.sha256((split / "index.json").read_bytes()).hexdigest()
    assert look_at_split(split) == {"index": digest, "shards": 3, "bytes": 60, "wrong": 0, "such_as": []}
    (split / "00.tar").unlink()
    (split / "02.tar").write_bytes(b"x")
    assert (look_at_split(split)["wrong"], look_at_split(split)["such_as"]) == (2, ["00.tar", "02.tar"])


def test_a_split_that_is_not_there_or_no_split(tmp_path: Path):
    assert look_at_split(tmp_path / "none")["fault"].endswith("none/index.json: No such file or directory")
    (tmp_path / "index.json").write_text("{")
    assert look_at_split(tmp_path)["fault"].endswith("is no index of shards")


def test_an_answer_is_plain_json(tmp_path: Path):
    request = {"packages": ["numpy", "no-such-package"], "splits": {"train": str(tmp_path / "none")}}
    answer = json.loads(json.dumps(probe(tmp_path / "runs" / "a", request)))
    assert answer["versions"]["no-such-package"] is None
    assert answer["versions"]["numpy"]
    assert answer["disk"] == {"place": str(tmp_path), "free": answer["disk"]["free"], "writable": True}
    assert len(answer["code"]) == 64
