"""Shards: same input, same bytes; complete or not there; a fault is one clear line."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from shards.build import writer
from shards.build.build_request import BuildRequest
from shards.build.output_directory import STAGING_NAME
from shards.build.packing import map_in_order
from shards.build.writer import build, build_shards
from shards.errors import ConfigError, DataError, UserError
from shards.format.images import MAX_PIXELS
from shards.format.index import read_index
from shards.format.records import decode_sample
from shards.format.tar_reader import ShardReader
from tests.corpora import SMALL_SHARD, Corpus, build_corpus, write_corpus

ROOT = Path(__file__).parents[4]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", num_images=9, questions_per_image=4)


def arguments(corpus: Corpus, out: Path, **changes) -> dict:
    return {
        "format": "gqa",
        "questions": [corpus.questions],
        "images": corpus.images,
        "out": out,
        "shard_bytes": SMALL_SHARD,
        **changes,
    }


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def some_image(corpus: Corpus, ending: str) -> Path:
    return sorted(corpus.images.glob(f"*{ending}"))[0]


def edit_questions(corpus: Corpus, change) -> None:
    records = json.loads(corpus.questions.read_text())
    change(records)
    corpus.questions.write_text(json.dumps(records))


class TestContent:
    def test_a_plain_webdataset_pipeline_finds_every_sample(self, tmp_path):
        directory, index = build_corpus(tmp_path, num_images=9, questions_per_image=4)
        assert len(index.shards) > 1
        urls = [str(directory / shard.name) for shard in index.shards]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        found = [decode_sample(sample["json"]).image_id for sample in samples]
        assert found == [image_id for shard in index.shards for image_id in shard.image_ids] == sorted(found)
        assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(9)]
        questions = [q["question_id"] for sample in samples for q in json.loads(sample["json"])["questions"]]
        assert sorted(questions) == sorted(json.loads((tmp_path / "corpus" / "questions.json").read_text()))

    def test_every_member_lies_where_the_index_says(self, tmp_path):
        directory, index = build_corpus(tmp_path, num_images=9)
        reader = ShardReader(directory, index)
        number = 0
        for shard in index.shards:
            with tarfile.open(directory / shard.name) as tar:
                members = tar.getmembers()
                for image, text in zip(members[0::2], members[1::2], strict=True):
                    assert text.name == image.name.rpartition(".")[0] + ".json"
                    assert tar.extractfile(image).read() == reader.image_bytes(number)
                    assert decode_sample(tar.extractfile(text).read()) == reader.sample(number)
                    number += 1
        assert number == index.num_images == 9

    def test_no_shard_is_larger_than_asked_unless_one_sample_is(self, tmp_path):
        _, index = build_corpus(tmp_path, num_images=20, shard_bytes=30_720)
        assert len(index.shards) > 1
        assert all(shard.bytes <= 30_720 for shard in index.shards)
        tiny = build_shards(**arguments(write_corpus(tmp_path / "c"), tmp_path / "tiny", shard_bytes=1))
        assert all(len(shard.image_ids) == 1 for shard in tiny.shards)

    def test_images_are_stored_as_they_are(self, corpus, tmp_path):
        index = build_shards(**arguments(corpus, tmp_path / "out"))
        reader = ShardReader(tmp_path / "out", index)
        formats = [name for shard in index.shards for name in shard.image_formats]
        ids = [name for shard in index.shards for name in shard.image_ids]
        assert set(formats) == {"jpg", "png", "webp"}
        for number, (image_id, extension) in enumerate(zip(ids, formats, strict=True)):
            assert reader.image_bytes(number) == (corpus.images / f"{image_id}.{extension}").read_bytes()

    def test_the_extension_is_that_of_the_real_format(self, corpus, tmp_path):
        png = some_image(corpus, ".png")
        png.rename(png.with_suffix(".jpg"))
        index = build_shards(**arguments(corpus, tmp_path / "out"))
        found = {i: f for shard in index.shards for i, f in zip(shard.image_ids, shard.image_formats, strict=True)}
        assert found[png.stem] == "png"

    def test_width_and_height_are_those_displayed(self, corpus, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # held upright: stored lying on its side
        path = some_image(corpus, ".jpg")
        Image.new("RGB", (60, 20)).save(path, exif=exif)
        index = build_shards(**arguments(corpus, tmp_path / "out"))
        reader = ShardReader(tmp_path / "out", index)
        sizes = {s.image_id: (s.width, s.height) for s in map(reader.sample, range(index.num_images))}
        assert sizes.pop(path.stem) == (20, 60)
        assert set(sizes.values()) == {(48, 40)}

    def test_resizing_brings_the_short_side_down_and_never_up(self, corpus, tmp_path):
        large, small = some_image(corpus, ".png"), some_image(corpus, ".webp")
        Image.new("RGBA", (90, 300)).save(large)
        before = small.read_bytes()
        index = build_shards(**arguments(corpus, tmp_path / "out", resize=45))
        reader = ShardReader(tmp_path / "out", index)
        by_id = {reader.sample(number).image_id: number for number in range(index.num_images)}
        resized = Image.open(io.BytesIO(reader.image_bytes(by_id[large.stem])))
        assert (resized.format, resized.size) == ("JPEG", (45, 150))
        assert (reader.sample(by_id[large.stem]).width, reader.sample(by_id[large.stem]).height) == (90, 300)
        assert reader.image_bytes(by_id[small.stem]) == before

    def test_scene_graphs_fill_the_boxes(self, tmp_path):
        directory, index = build_corpus(tmp_path, num_images=3, ragged=False)
        scenes = json.loads((tmp_path / "corpus" / "scene_graphs.json").read_text())
        records = json.loads((tmp_path / "corpus" / "questions.json").read_text())
        reader = ShardReader(directory, index)
        for number in range(3):
            sample = reader.sample(number)
            for question in sample.questions:
                for words, name in records[question.question_id]["annotations"]["question"].items():
                    box = scenes[sample.image_id]["objects"][name]
                    assert question.boxes.question[words] == (box["x"], box["y"], box["w"], box["h"])

    def test_the_tables_of_the_index_are_counted_from_the_questions(self, corpus, tmp_path):
        index = build_shards(**arguments(corpus, tmp_path / "out"))
        records = json.loads(corpus.questions.read_text()).values()
        answers = [record["answer"] for record in records]
        assert index.answers == {answer: answers.count(answer) for answer in answers}
        colors = [record["answer"] for record in records if record["groups"]["global"] == "color"]
        assert index.groups["color"] == {answer: colors.count(answer) for answer in colors}
        assert None not in index.groups
        kinds = [record["types"]["structural"] for record in records]
        assert index.types["structural"] == {kind: kinds.count(kind) for kind in kinds}
        assert index.counts["questions"] == index.counts["answered"] == len(records) == index.num_questions.sum()

    def test_balanced_only_and_limit_leave_out_and_count(self, corpus, tmp_path):
        records = json.loads(corpus.questions.read_text()).values()
        unbalanced = sum(not record["isBalanced"] for record in records)
        assert unbalanced > 0
        balanced = build_shards(**arguments(corpus, tmp_path / "balanced", balanced_only=True))
        assert balanced.counts["questions"] == len(records) - unbalanced
        assert balanced.counts["unbalanced_questions"] == unbalanced
        every = build_shards(**arguments(corpus, tmp_path / "all"))
        few = build_shards(**arguments(corpus, tmp_path / "few", limit=4))
        ids = [[name for shard in index.shards for name in shard.image_ids] for index in (every, few)]
        assert ids[1] == ids[0][:4]

    @pytest.mark.parametrize("format", ["jsonl", "csv"])
    def test_own_data_in_a_table_is_packed(self, corpus, tmp_path, format):
        names = sorted(path.name for path in corpus.images.iterdir())
        rows = [{"image": name, "question": "What is it?", "answer": "a shape"} for name in names]
        table = tmp_path / f"rows.{format}"
        if format == "jsonl":
            table.write_text("\n".join(json.dumps(row) for row in rows))
        else:
            table.write_text("\n".join(["image,question,answer", *(",".join(row.values()) for row in rows)]))
        index = build_shards(**arguments(corpus, tmp_path / "out", format=format, questions=[table]))
        assert [name for shard in index.shards for name in shard.image_ids] == names
        assert index.answers == {"a shape": len(names)}
        assert not build(BuildRequest(**arguments(corpus, tmp_path / "out", format=format, questions=[table]))).is_new

    def test_answers_and_their_alternatives_are_lowered_where_asked_and_nothing_else_is(self, corpus, tmp_path):
        plain = build_shards(**arguments(corpus, tmp_path / "plain"))

        def shout(records: dict) -> None:
            for record in records.values():
                record["answer"] = f" {record['answer'].upper()}\t"
                for step in record["semantic"]:
                    step["argument"] = step["argument"].upper()

        edit_questions(corpus, shout)
        shouted = build_shards(**arguments(corpus, tmp_path / "shouted"))
        lowered = build_shards(**arguments(corpus, tmp_path / "lowered", lowercase_answers=True))
        assert not shouted.answers.keys() & plain.answers.keys()
        assert (lowered.answers, lowered.groups) == (plain.answers, plain.groups)
        readers = (ShardReader(tmp_path / "plain", plain), ShardReader(tmp_path / "lowered", lowered))
        options = set()
        for number in range(plain.num_images):
            one, other = (reader.sample(number) for reader in readers)
            assert [q.answer for q in one.questions] == [q.answer for q in other.questions]
            assert [q.question for q in one.questions] == [q.question for q in other.questions]
            options |= {q.options for q in other.questions}
        assert ("left", "right") in options

    def test_questions_without_an_answer_stay_without_one_in_lower_case(self, corpus, tmp_path):
        edit_questions(corpus, lambda records: [record.pop("answer") for record in records.values()])
        index = build_shards(**arguments(corpus, tmp_path / "out", lowercase_answers=True))
        assert (index.counts["answered"], index.answers) == (0, {})


class TestSameInputSameBytes:
    def test_options_that_are_not_given_are_not_in_the_index(self, corpus, tmp_path):
        """The names are part of the bytes: one more would make every data set that was ever built another one."""
        options = build_shards(**arguments(corpus, tmp_path / "out")).options
        assert sorted(options) == ["balanced_only", "limit", "on_missing", "resize", "shard_bytes"]

    def test_workers_order_of_files_and_times_of_images_change_nothing(self, tmp_path):
        one = write_corpus(tmp_path / "one", num_images=7)
        records = list(json.loads(one.questions.read_text()).items())
        parts = [tmp_path / "part_0.json", tmp_path / "part_1.json"]
        for path, part in zip(parts, (records[::2], records[1::2]), strict=True):
            path.write_text(json.dumps(dict(part)))
        build_shards(**arguments(one, tmp_path / "a", questions=parts, workers=0))
        for path in one.images.iterdir():
            os.utime(path, (1, 1))
        build_shards(**arguments(one, tmp_path / "b", questions=parts[::-1], workers=3))
        assert len(contents(tmp_path / "a")) > 2
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_an_identical_repetition_counts_once(self, corpus, tmp_path):
        index = build_shards(**arguments(corpus, tmp_path / "out"))
        copy = tmp_path / "copy.json"
        shutil.copy(corpus.questions, copy)
        again = build_shards(**arguments(corpus, tmp_path / "twice", questions=[corpus.questions, copy]))
        assert again.shards == index.shards
        assert again.counts["duplicate_questions"] == index.counts["questions"]

    def test_building_again_writes_nothing_and_says_so(self, corpus, tmp_path):
        request = BuildRequest(**arguments(corpus, tmp_path / "out"))
        first = build(request)
        before = {path.name: path.stat() for path in (tmp_path / "out").iterdir()}
        for path in corpus.images.iterdir():
            os.utime(path)
        second = build(request)
        assert (first.is_new, second.is_new) == (True, False)
        assert second.index == first.index
        assert {path.name: path.stat() for path in (tmp_path / "out").iterdir()} == before

    @pytest.mark.parametrize("leftovers", [False, True])
    def test_building_again_works_where_nothing_can_be_written(self, corpus, tmp_path, monkeypatch, leftovers):
        out = tmp_path / "out"
        request = BuildRequest(**arguments(corpus, out))
        index = build(request).index
        if leftovers:
            (out / STAGING_NAME).mkdir()
        with monkeypatch.context() as patch:
            make_read_only(out, patch)
            assert build(request) == (index, False)
            Image.new("RGB", (48, 40)).save(some_image(corpus, ".png"))
            with pytest.raises(DataError, match="Read-only file system; nothing was changed"):
                build(request)
        assert read_index(out) == index

    def test_building_again_removes_what_a_killed_build_left_beside_finished_shards(self, corpus, tmp_path):
        request = BuildRequest(**arguments(corpus, tmp_path / "out"))
        build(request)
        before = contents(tmp_path / "out")
        (tmp_path / "out" / STAGING_NAME).mkdir()
        (tmp_path / "out" / STAGING_NAME / "000000.tar").write_bytes(b"half")
        assert not build(request).is_new
        assert contents(tmp_path / "out") == before

    def test_a_changed_image_is_packed_anew(self, corpus, tmp_path):
        request = BuildRequest(**arguments(corpus, tmp_path / "out"))
        build(request)
        before = contents(tmp_path / "out")
        path = some_image(corpus, ".png")
        Image.new("RGB", (48, 40)).save(path)
        rebuilt = build(request)
        assert rebuilt.is_new
        assert contents(tmp_path / "out") != before
        build_shards(**arguments(corpus, tmp_path / "fresh"))
        assert contents(tmp_path / "out") == contents(tmp_path / "fresh")

    def test_a_missing_image_that_turns_up_is_packed(self, corpus, tmp_path):
        path = some_image(corpus, ".png")
        path.rename(tmp_path / path.name)
        request = BuildRequest(**arguments(corpus, tmp_path / "out", on_missing="skip"))
        assert build(request).index.counts["missing_images"] == 1
        assert not build(request).is_new
        (tmp_path / path.name).rename(path)
        assert build(request).index.counts["missing_images"] == 0

    def test_a_lost_shard_is_built_again(self, corpus, tmp_path):
        request = BuildRequest(**arguments(corpus, tmp_path / "out"))
        build(request)
        before = contents(tmp_path / "out")
        (tmp_path / "out" / "000001.tar").unlink()
        assert build(request).is_new
        assert contents(tmp_path / "out") == before


class TestOutputDirectory:
    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"limit": 3}, "limit None there, 3 asked"),
            ({"resize": 20}, "resize None there, 20 asked"),
            ({"balanced_only": True}, "balanced_only False there, True asked"),
            ({"lowercase_answers": True}, "lowercase_answers False there, True asked"),
        ],
    )
    def test_another_data_set_is_refused(self, corpus, tmp_path, change, what):
        build_shards(**arguments(corpus, tmp_path / "out"))
        before = contents(tmp_path / "out")
        with pytest.raises(DataError, match=f"out: holds another data set: {what}"):
            build_shards(**arguments(corpus, tmp_path / "out", **change))
        assert contents(tmp_path / "out") == before

    def test_answers_as_they_are_written_are_another_data_set_than_lowered_ones(self, corpus, tmp_path):
        request = arguments(corpus, tmp_path / "out", lowercase_answers=True)
        assert build_shards(**request).options["lowercase_answers"]
        assert not build(BuildRequest(**request)).is_new
        with pytest.raises(DataError, match="another data set: lowercase_answers True there, False asked;"):
            build_shards(**{**request, "lowercase_answers": False})

    def test_other_annotations_are_another_data_set(self, corpus, tmp_path):
        build_shards(**arguments(corpus, tmp_path / "out"))
        edit_questions(corpus, lambda records: records.popitem())
        with pytest.raises(DataError, match=r"holds another data set: built from questions\.json"):
            build_shards(**arguments(corpus, tmp_path / "out"))

    @pytest.mark.parametrize("name", ["000000.tar", "thesis.tex"])
    def test_files_of_somebody_else_are_refused_and_untouched(self, corpus, tmp_path, name):
        out = tmp_path / "out"
        (out / STAGING_NAME).mkdir(parents=True) if name != "000000.tar" else out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(DataError, match=f"holds '{name}' but no index.json"):
            build_shards(**arguments(corpus, out))
        assert (out / name).read_text() == "mine"

    def test_two_builds_do_not_write_into_one_directory(self, corpus, tmp_path, monkeypatch):
        def build_inside(*_: object) -> None:
            build_shards(**arguments(corpus, tmp_path / "out"))

        monkeypatch.setattr(writer, "_write", build_inside)
        with pytest.raises(DataError, match="another build is writing here"):
            build_shards(**arguments(corpus, tmp_path / "out"))

    @pytest.mark.parametrize("stop_at", ["_check_images", "_index"])
    def test_an_interrupt_leaves_nothing(self, corpus, tmp_path, monkeypatch, stop_at):
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, stop_at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_shards(**arguments(corpus, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_an_interrupt_while_publishing_leaves_nothing(self, corpus, tmp_path, monkeypatch):
        replace = os.replace

        def replace_once(source: Path, target: Path) -> None:
            if target.name == "000001.tar":
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", replace_once)
        with pytest.raises(KeyboardInterrupt):
            build_shards(**arguments(corpus, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_what_a_killed_build_left_is_cleaned_by_the_same_command(self, corpus, tmp_path):
        build_shards(**arguments(corpus, tmp_path / "out"))
        whole = contents(tmp_path / "out")
        # Killed while publishing: some shards in place, one still staged, no index.
        (tmp_path / "out" / "index.json").unlink()
        (tmp_path / "out" / STAGING_NAME).mkdir()
        (tmp_path / "out" / "000001.tar").rename(tmp_path / "out" / STAGING_NAME / "000001.tar")
        (tmp_path / "out" / "000000.tar").write_bytes(b"stale")
        assert build(BuildRequest(**arguments(corpus, tmp_path / "out"))).is_new
        assert contents(tmp_path / "out") == whole

    def test_a_build_killed_while_packing_leaves_no_process_and_is_mended(self, tmp_path):
        corpus = write_corpus(tmp_path / "corpus", num_images=40)
        child, workers = start_slow_build(corpus, tmp_path)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert [path.name for path in (tmp_path / "out").iterdir()] == [STAGING_NAME]
        wait_until_gone(workers)
        index = build_shards(**arguments(corpus, tmp_path / "out"))
        assert contents(tmp_path / "out").keys() == {"index.json", *(shard.name for shard in index.shards)}

    def test_ctrl_c_reaches_the_parent_alone_and_leaves_nothing(self, tmp_path):
        corpus = write_corpus(tmp_path / "corpus", num_images=40)
        child, workers = start_slow_build(corpus, tmp_path)
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate()
        assert errors.count(b"Traceback") == 1, errors.decode()
        assert not (tmp_path / "out").exists()
        wait_until_gone(workers)


def make_read_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing inside a directory be made, moved or removed, for root as well."""

    def refusing(change: Callable) -> Callable:
        def guarded(path: str | Path, *more: object, **options: object) -> object:
            if isinstance(path, (str, Path)) and directory in Path(path).parents:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return change(path, *more, **options)

        return guarded

    for name in ("mkdir", "rmdir", "unlink", "replace", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def start_slow_build(corpus: Corpus, directory: Path) -> tuple[subprocess.Popen, list[str]]:
    """A build with two workers that is stuck in packing, and the process ids of its children."""
    program = directory / "slow_build.py"
    program.write_text(
        "import time; from pathlib import Path; from shards import writer\n"
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


class TestFaults:
    def test_a_missing_image_is_named_before_any_packing(self, corpus, tmp_path):
        for path in sorted(corpus.images.iterdir())[:2]:
            path.unlink()
        with pytest.raises(
            DataError, match=r"images: no image 01000\{.jpg,.*missing are 2 of 9 images; --on-missing skip"
        ):
            build_shards(**arguments(corpus, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @staticmethod
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
            (lambda _: TestFaults.bomb(), f"25000 x 1001 pixels; expected at most {MAX_PIXELS}"),
            (lambda _: b"GIF89a\1\0\1\0\0\0\0;", "not a JPEG, PNG or WebP image"),
        ],
        ids=["truncated", "text", "empty", "bomb", "gif"],
    )
    @pytest.mark.parametrize("ending", [".jpg", ".png"])
    def test_an_unreadable_image_is_one_clear_line(self, corpus, tmp_path, make, what, ending):
        path = some_image(corpus, ending)
        path.write_bytes(make(path.read_bytes()))
        with pytest.raises(DataError, match=rf"{path.name}: {what}.*--on-missing skip") as caught:
            build_shards(**arguments(corpus, tmp_path / "out"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_skipped_images_and_their_questions_are_counted(self, corpus, tmp_path):
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

    def test_no_usable_image_at_all_is_an_error(self, corpus, tmp_path):
        for path in corpus.images.iterdir():
            path.unlink()
        with pytest.raises(DataError, match="none of 9 images can be used"):
            build_shards(**arguments(corpus, tmp_path / "out", on_missing="skip"))

    @pytest.mark.parametrize("image", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg"])
    @pytest.mark.parametrize("on_missing", ["fail", "skip"])
    def test_a_path_out_of_the_image_directory_is_refused(self, corpus, tmp_path, image, on_missing):
        shutil.copy(some_image(corpus, ".jpg"), corpus.directory / "secret.jpg")
        table = tmp_path / "rows.jsonl"
        table.write_text(json.dumps({"image": image, "question": "?", "answer": "!"}))
        with pytest.raises(DataError, match="leads out of the image directory"):
            build_shards(
                **arguments(corpus, tmp_path / "out", format="jsonl", questions=[table], on_missing=on_missing)
            )

    @pytest.mark.parametrize("field", ["answer", "imageId"])
    def test_one_id_with_two_contents_is_refused(self, corpus, tmp_path, field):
        records = json.loads(corpus.questions.read_text())
        name = next(iter(records))
        records[name][field] = "1001"
        other = tmp_path / "other.json"
        other.write_text(json.dumps({name: records[name]}))
        with pytest.raises(DataError, match=f"question id '{name}' occurs with different content .*other.json"):
            build_shards(**arguments(corpus, tmp_path / "out", questions=[corpus.questions, other]))

    def test_one_image_id_for_two_files_is_refused(self, corpus, tmp_path):
        table = tmp_path / "rows.jsonl"
        rows = [{"image": n, "image_id": "7", "question": "?", "answer": n} for n in ("01000.jpg", "1001.png")]
        table.write_text("\n".join(json.dumps(row) for row in rows))
        with pytest.raises(DataError, match=r"image id '7' stands for two files, '01000.jpg' and '1001.png'"):
            build_shards(**arguments(corpus, tmp_path / "out", format="jsonl", questions=[table]))

    def test_half_a_surrogate_pair_is_refused(self, corpus, tmp_path):
        edit_questions(corpus, lambda records: next(iter(records.values())).update(answer="\ud800"))
        with pytest.raises(DataError, match="question '0000000' of image '01000'"):
            build_shards(**arguments(corpus, tmp_path / "out"))

    def test_broken_json_leaves_nothing(self, corpus, tmp_path):
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
            ({"questions": []}, ConfigError, "--questions: no files given"),
            ({"questions": [Path("/nowhere/q.json")]}, DataError, r"/nowhere/q\.json: cannot be read: No such file"),
            ({"images": Path("/nowhere")}, DataError, "--images /nowhere: no such directory"),
            ({"scene_graphs": Path("s.json"), "format": "csv"}, ConfigError, "--scene-graphs: belongs to --format gqa"),
        ],
    )
    def test_a_request_that_makes_no_sense_is_refused(self, corpus, tmp_path, change, kind, what):
        with pytest.raises(kind, match=what):
            build_shards(**arguments(corpus, tmp_path / "out", **change))

    def test_a_full_disk_is_one_line_and_leaves_nothing(self, corpus, tmp_path, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writer.TarShards, "add", full)
        with pytest.raises(DataError, match=r"out: No space left on device; nothing was changed; .*with room"):
            build_shards(**arguments(corpus, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("out", ["/dev/null/out", "/sys/duoflow-out", "/dev/null"])
    def test_an_output_that_cannot_be_made_is_one_line(self, corpus, out):
        with pytest.raises(DataError, match=rf"{out}: .*; nothing was changed; .*choose another --out") as caught:
            build_shards(**arguments(corpus, Path(out)))
        assert "\n" not in str(caught.value)

    def test_an_output_that_cannot_be_written_is_one_line(self, corpus, tmp_path, monkeypatch):
        out = tmp_path / "out"
        out.mkdir()
        make_read_only(out, monkeypatch)
        with pytest.raises(DataError, match=rf"out/{STAGING_NAME}: Read-only file system; .*choose another --out"):
            build_shards(**arguments(corpus, out))
        assert contents(out) == {}

    def test_chunks_that_cannot_be_listed_are_one_line(self, corpus, tmp_path, monkeypatch):
        def denied(path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        (tmp_path / "chunks").mkdir()
        monkeypatch.setattr(Path, "iterdir", denied)
        with pytest.raises(DataError, match="chunks: cannot be read: Permission denied"):
            build_shards(**arguments(corpus, tmp_path / "out", questions=[tmp_path / "chunks"]))

    def test_a_killed_worker_is_one_line(self):
        with pytest.raises(UserError, match="one of 2 processes was killed"):
            list(map_in_order(os._exit, [9, 9], 2))


class TestImports:
    def test_building_imports_no_torch_and_no_webdataset_without_it(self, corpus, tmp_path):
        script = (
            "import sys; from pathlib import Path; from shards.build.writer import build_shards\n"
            f"build_shards(format='gqa', questions=[Path({str(corpus.questions)!r})],\n"
            f"    images=Path({str(corpus.images)!r}), out=Path({str(tmp_path / 'out')!r}))\n"
            "assert not [name for name in sys.modules if name.partition('.')[0] in ('torch', 'webdataset')]\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
        assert (tmp_path / "out" / "index.json").exists()
