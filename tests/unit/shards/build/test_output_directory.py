"""The output directory: complete or not there, and never somebody else's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.build import writer
from shards.build.build_request import BuildRequest
from shards.build.output_directory import STAGING_NAME
from shards.build.writer import build, build_shards
from shards.errors import DataError
from tests.corpora import Corpus, write_corpus
from tests.unit.shards.build.builds import arguments, contents, edit_questions

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"limit": 3}, "limit None there, 3 asked"),
        ({"resize": 20}, "resize None there, 20 asked"),
        ({"balanced_only": True}, "balanced_only False there, True asked"),
        ({"lowercase_answers": True}, "lowercase_answers False there, True asked"),
    ],
)
def test_another_data_set_is_refused(corpus, tmp_path, change, what):
    build_shards(**arguments(corpus, tmp_path / "out"))
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=f"out: holds another data set: {what}"):
        build_shards(**arguments(corpus, tmp_path / "out", **change))
    assert contents(tmp_path / "out") == before


def test_answers_as_they_are_written_are_another_data_set_than_lowered_ones(corpus, tmp_path):
    request = arguments(corpus, tmp_path / "out", lowercase_answers=True)
    assert build_shards(**request).options["lowercase_answers"]
    assert not build(BuildRequest(**request)).is_new
    with pytest.raises(DataError, match="another data set: lowercase_answers True there, False asked;"):
        build_shards(**{**request, "lowercase_answers": False})


def test_other_annotations_are_another_data_set(corpus, tmp_path):
    build_shards(**arguments(corpus, tmp_path / "out"))
    edit_questions(corpus, lambda records: records.popitem())
    with pytest.raises(DataError, match=r"holds another data set: built from questions\.json"):
        build_shards(**arguments(corpus, tmp_path / "out"))


@pytest.mark.parametrize("name", ["000000.tar", "thesis.tex"])
def test_files_of_somebody_else_are_refused_and_untouched(corpus, tmp_path, name):
    out = tmp_path / "out"
    (out / STAGING_NAME).mkdir(parents=True) if name != "000000.tar" else out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(DataError, match=f"holds '{name}' but no index.json"):
        build_shards(**arguments(corpus, out))
    assert (out / name).read_text() == "mine"


def test_two_builds_do_not_write_into_one_directory(corpus, tmp_path, monkeypatch):
    def build_inside(*_: object) -> None:
        build_shards(**arguments(corpus, tmp_path / "out"))

    monkeypatch.setattr(writer, "_write", build_inside)
    with pytest.raises(DataError, match="another build is writing here"):
        build_shards(**arguments(corpus, tmp_path / "out"))


@pytest.mark.parametrize("stop_at", ["_check_images", "_index"])
def test_an_interrupt_leaves_nothing(corpus, tmp_path, monkeypatch, stop_at):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, stop_at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_shards(**arguments(corpus, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_interrupt_while_publishing_leaves_nothing(corpus, tmp_path, monkeypatch):
    replace = os.replace

    def replace_once(source: Path, target: Path) -> None:
        if target.name == "000001.tar":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        build_shards(**arguments(corpus, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_a_killed_build_left_is_cleaned_by_the_same_command(corpus, tmp_path):
    build_shards(**arguments(corpus, tmp_path / "out"))
    whole = contents(tmp_path / "out")
    # Killed while publishing: some shards in place, one still staged, no index.
    (tmp_path / "out" / "index.json").unlink()
    (tmp_path / "out" / STAGING_NAME).mkdir()
    (tmp_path / "out" / "000001.tar").rename(tmp_path / "out" / STAGING_NAME / "000001.tar")
    (tmp_path / "out" / "000000.tar").write_bytes(b"stale")
    assert build(BuildRequest(**arguments(corpus, tmp_path / "out"))).is_new
    assert contents(tmp_path / "out") == whole


def test_a_build_killed_while_packing_leaves_no_process_and_is_mended(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", num_images=40)
    child, workers = start_slow_build(corpus, tmp_path)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [STAGING_NAME]
    wait_until_gone(workers)
    index = build_shards(**arguments(corpus, tmp_path / "out"))
    assert contents(tmp_path / "out").keys() == {"columns.bin", "index.json", *(shard.name for shard in index.shards)}


def test_ctrl_c_reaches_the_parent_alone_and_leaves_nothing(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", num_images=40)
    child, workers = start_slow_build(corpus, tmp_path)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate()
    assert errors.count(b"Traceback") == 1, errors.decode()
    assert not (tmp_path / "out").exists()
    wait_until_gone(workers)


def start_slow_build(corpus: Corpus, directory: Path) -> tuple[subprocess.Popen, list[str]]:
    """A build with two workers that is stuck in packing, and the process ids of its children."""
    program = directory / "slow_build.py"
    program.write_text(
        "import time; from pathlib import Path; from shards.build import writer\n"
        "def slow(*_): print('packing', flush=True); time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    writer.TarShards.add = slow\n"
        f"    writer.build_shards(format='gqa', questions=[Path({str(corpus.questions)!r})], workers=2,\n"
        f"        images=Path({str(corpus.images)!r}), out=Path({str(directory / 'out')!r}))\n"
    )
    child = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert child.stdout.readline() == b"packing\n"
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    assert len(children) >= 2
    return child, children


def wait_until_gone(processes: list[str]) -> None:
    end = time.monotonic() + 20
    while running := [p for p in processes if is_running(p)]:
        assert time.monotonic() < end, f"still running: {running}"
        time.sleep(0.05)


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
