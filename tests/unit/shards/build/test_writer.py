"""Shards: what they hold, and the same bytes from the same input."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from shards.build.build_request import BuildRequest
from shards.build.output_directory import STAGING_NAME
from shards.build.writer import build, build_shards
from shards.errors import DataError
from shards.format.index import read_index
from shards.format.records import decode_sample
from shards.format.tar_reader import ShardReader
from tests.corpora import build_corpus, write_corpus
from tests.unit.shards.build.builds import arguments, contents, edit_questions, make_read_only, some_image

ROOT = Path(__file__).parents[4]


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
                    assert tar.extractfile(image).read() == reader.images(number)[0]
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
            assert reader.images(number)[0] == (corpus.images / f"{image_id}.{extension}").read_bytes()

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
        resized = Image.open(io.BytesIO(reader.images(by_id[large.stem])[0]))
        assert (resized.format, resized.size) == ("JPEG", (45, 150))
        assert (reader.sample(by_id[large.stem]).width, reader.sample(by_id[large.stem]).height) == (90, 300)
        assert reader.images(by_id[small.stem])[0] == before

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
