"""Shards of regions: what a TSV says is packed as it stands, and what is wrong with one is told by file and line."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.build.verify import verify_shards
from shards.build.writer import build_shards
from shards.errors import DataError, UserError
from shards.format.index import RegionShape, SplitIndex, read_index
from shards.format.records import ScoredSample
from shards.format.regions import EXTENSION, Regions, decode_regions
from shards.format.tar_reader import ShardReader
from tests.corpora import SMALL_SHARD
from tests.official import Official
from tests.regions import NUM_REGIONS, REGION_WIDTH, regions_of, row_of, write_tsv
from tests.task_corpora import write_lxmert, write_lxmert_nlvr2
from trainer.cli import main

Row = dict[str, str]
IMAGES = ("a", "b", "c")


def questions(path: Path, images: tuple[str, ...] = IMAGES) -> Path:
    rows = [
        {"question_id": number, "img_id": name, "sent": "Is it?", "label": {"yes": 1}}
        for number, name in enumerate(images)
    ]
    path.write_text(json.dumps(rows))
    return path


def rows(*images: str, **changes: int | tuple[int, int]) -> list[Row]:
    return [row_of(name, regions_of(1, 2, number + 3, **changes)) for number, name in enumerate(images)]


def build(tmp_path: Path, *files: Path, asked: tuple[str, ...] = IMAGES, **options: object) -> SplitIndex:
    path = questions(tmp_path / "questions.json", asked)
    return build_shards(format="lxmert", questions=[path], regions=files, out=tmp_path / "shards", **options)


def refused(tmp_path: Path, *files: Path, **options: object) -> str:
    """The one line that such a build ends with; nothing is left of it."""
    with pytest.raises(UserError) as told:
        build(tmp_path, *files, **options)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "shards").exists()
    return str(told.value)


def regions_in(directory: Path) -> dict[str, list[Regions]]:
    index = read_index(directory)
    reader = ShardReader(directory, index, ScoredSample)
    ids = [name for shard in index.shards for name in shard.image_ids]
    return {name: [decode_regions(data, name) for data in reader.images(n)] for n, name in enumerate(ids)}


def test_what_a_row_says_is_packed_to_the_bit(tmp_path: Path):
    seen = {name: regions_of(1, 2, number, size=(50 + number, 31)) for number, name in enumerate(IMAGES)}
    index = build(tmp_path, write_tsv(tmp_path / "t.tsv", [row_of(name, one) for name, one in seen.items()]))
    assert index.medium == "regions"
    assert index.regions == RegionShape(count=3, width=REGION_WIDTH)
    for name, (found,) in regions_in(tmp_path / "shards").items():
        for field in Regions._fields:
            value, expected = getattr(found, field), getattr(seen[name], field)
            assert value.dtype == expected.dtype, field
            assert np.array_equal(value, expected), field
    reader = ShardReader(tmp_path / "shards", index, ScoredSample)
    assert [reader.sample(number).pictures[0].width for number in range(3)] == [50, 51, 52]
    assert {name for shard in index.shards for name in shard.image_formats} == {EXTENSION}


def test_the_order_and_the_number_of_files_change_nothing(tmp_path: Path):
    every, names = rows(*IMAGES), list(IMAGES)
    built = []
    for number, parts in enumerate(([every], [every[2:], every[:2]], [[every[1]], [every[2]], [every[0]]])):
        home = tmp_path / str(number)
        home.mkdir()
        files = [write_tsv(home / f"{place}.tsv", part) for place, part in enumerate(parts)]
        built.append(build(home, *files).shards)
        assert list(regions_in(home / "shards")) == names
    assert built[0] == built[1] == built[2]


def test_rows_of_images_that_nobody_asks_about_are_passed_over(tmp_path: Path):
    stranger = rows("x")[0] | {"features": "no base64 at all"}
    build(tmp_path, write_tsv(tmp_path / "t.tsv", [stranger, *rows(*IMAGES), stranger]))
    assert list(regions_in(tmp_path / "shards")) == list(IMAGES)


def test_empty_lines_are_passed_over_and_counted(tmp_path: Path):
    path = write_tsv(tmp_path / "t.tsv", rows(*IMAGES))
    path.write_text("\n" + path.read_text().replace("\n", "\n\r\n\n") + "\n")
    build(tmp_path, path)
    assert list(regions_in(tmp_path / "shards")) == list(IMAGES)
    path.write_text(path.read_text() + "a\t1\n")
    (tmp_path / "again").mkdir()
    assert f"{path}: line 12: 2 columns" in refused(tmp_path / "again", path)


def test_shards_verify_and_are_described_and_a_second_build_does_nothing(tmp_path: Path, capsys):
    files = write_lxmert(tmp_path / "files", num_samples=8, seed=0)
    assert main(files.words(tmp_path / "out")) == 0
    before = (tmp_path / "out" / "index.json").stat().st_mtime_ns
    assert main(files.words(tmp_path / "out")) == 0
    assert "already built, nothing changed" in capsys.readouterr().out
    assert (tmp_path / "out" / "index.json").stat().st_mtime_ns == before
    report = verify_shards(tmp_path / "out")
    assert report.faults == []
    assert report.images == 8
    assert main(["shards", "info", str(tmp_path / "out")]) == 0
    assert f"{NUM_REGIONS} regions of {REGION_WIDTH} numbers" in capsys.readouterr().out


def test_other_regions_of_the_same_images_are_another_data_set(tmp_path: Path):
    files = write_lxmert(tmp_path / "files", num_samples=4, seed=0)
    first = read_index(files.build(tmp_path / "out"))
    row = files.regions[0].read_text().splitlines()[0].split("\t")
    changed = regions_of(9, 9, 9, 9)
    other = row_of(row[0], changed)
    rest = files.regions[0].read_text().splitlines(keepends=True)[1:]
    write_tsv(files.regions[0], [other])
    files.regions[0].write_text(files.regions[0].read_text() + "".join(rest))
    second = read_index(files.build(tmp_path / "out"))
    assert second.images_sha256 != first.images_sha256
    assert any(np.array_equal(one.features, changed.features) for (one,) in regions_in(tmp_path / "out").values())


def test_pairs_have_two_members_in_the_order_of_the_statement(tmp_path: Path):
    files = write_lxmert_nlvr2(tmp_path / "files", num_samples=4, seed=0)
    index = read_index(files.build(tmp_path / "out"))
    assert index.reader == "lxmert_nlvr2"
    assert [shard.images_per_sample for shard in index.shards] == [[2] * len(s.image_ids) for s in index.shards]
    refs = [ref for shard in index.shards for ref in shard.image_refs]
    assert refs[:2] == ["dev-0-0-img0", "dev-0-0-img1"]
    assert verify_shards(tmp_path / "out").faults == []


def test_a_format_of_pixels_can_be_built_over_regions_too(tmp_path: Path):
    lines = [{"identifier": f"train-1-0-{n}", "sentence": "So?", "label": "True", "directory": 7} for n in range(2)]
    (tmp_path / "train.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = write_tsv(tmp_path / "t.tsv", rows("train-1-0-img0", "train-1-0-img1"))
    out = tmp_path / "out"
    index = build_shards(format="nlvr2", questions=[tmp_path / "train.json"], regions=[seen], out=out)
    assert index.shards[0].image_refs == ["7/train-1-0-img0", "7/train-1-0-img1"]


def test_a_flipped_byte_or_another_size_is_found(tmp_path: Path):
    build(tmp_path, write_tsv(tmp_path / "t.tsv", rows(*IMAGES)))
    path = next((tmp_path / "shards").glob("*.tar"))
    data = bytearray(path.read_bytes())
    data[read_index(tmp_path / "shards").shards[0].image_offsets[1] + 3] ^= 0xFF
    path.write_bytes(data)
    faults = verify_shards(tmp_path / "shards").faults
    assert any("sha256" in fault for fault in faults)
    assert any("000000001.regions.safetensors: not regions, or damaged" in fault for fault in faults)


class TestFaults:
    """One line with file and line, exit code 2, nothing written."""

    def damaged(self, tmp_path: Path, change: Callable[[Row], Row]) -> str:
        every = rows(*IMAGES)
        return refused(tmp_path, write_tsv(tmp_path / "t.tsv", [every[0], change(every[1]), every[2]]))

    def test_base64_that_is_cut_off(self, tmp_path: Path):
        line = self.damaged(tmp_path, lambda row: row | {"features": row["features"][:-3]})
        assert line.startswith(f"{tmp_path / 't.tsv'}: line 2: image 'b': features: ")
        assert "no base64, or cut off" in line

    def test_base64_that_is_cut_between_numbers(self, tmp_path: Path):
        line = self.damaged(tmp_path, lambda row: row | {"features": row["features"][:-4]})
        assert "line 2: image 'b': features: " in line

    def test_a_file_that_ends_in_the_middle_of_a_row(self, tmp_path: Path):
        path = write_tsv(tmp_path / "t.tsv", rows(*IMAGES))
        whole = path.read_text()
        for end in (len(whole) - 100, whole.rindex("\t") - 3, whole.rindex("c\t") + 2):
            path.write_text(whole[:end])
            assert f"{path}: line 3: " in refused(tmp_path, path)

    def test_a_row_without_all_columns(self, tmp_path: Path):
        path = tmp_path / "t.tsv"
        path.write_text("a\t1\t2\n")
        line = refused(tmp_path, path)
        assert line.startswith(f"{path}: line 1: 3 columns; expected the 10 of LXMERT's: img_id, img_h, img_w, ")

    def test_columns_of_another_kind_of_file(self, tmp_path: Path):
        path = tmp_path / "t.tsv"
        path.write_text("image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n")
        assert f"{path}: line 1: 6 columns; expected the 10" in refused(tmp_path, path)

    @pytest.mark.parametrize("found", ["four", "-1", "0", "", "3.0", "1" * 10, "9" * 20])
    def test_a_number_of_boxes_that_is_none(self, tmp_path: Path, found: str):
        line = self.damaged(tmp_path, lambda row: row | {"num_boxes": found})
        assert f"line 2: image 'b': num_boxes: expected a whole number from 1 to 999,999,999, got {found!r}" in line

    def test_a_number_of_boxes_that_the_arrays_do_not_have(self, tmp_path: Path):
        line = self.damaged(tmp_path, lambda row: row | {"num_boxes": "4"})
        assert "line 2: image 'b': objects_id: 3 numbers; expected 4, as num_boxes is 4" in line

    def test_boxes_of_another_number_than_the_rest(self, tmp_path: Path):
        other = row_of("b", regions_of(1, 2))
        line = self.damaged(tmp_path, lambda row: row | {"boxes": other["boxes"]})
        assert "line 2: image 'b': boxes: 8 numbers; expected 12, as num_boxes is 3" in line

    def test_numbers_that_are_not_finite(self, tmp_path: Path):
        broken = regions_of(1, 2, 3)
        broken.features[1, 4] = np.nan
        line = self.damaged(tmp_path, lambda _: row_of("b", broken))
        assert "line 2: image 'b': features: holds numbers that are not finite" in line

    def test_a_box_outside_of_its_image(self, tmp_path: Path):
        broken = regions_of(1, 2, 3)
        broken.boxes[2] = (0, 0, 41, 10)
        line = self.damaged(tmp_path, lambda _: row_of("b", broken))
        assert "line 2: image 'b': boxes: box 3 (0, 0, 41, 10) stands outside of an image of 40 x 32" in line

    def test_another_number_of_regions_or_another_width(self, tmp_path: Path):
        for other in (row_of("b", regions_of(1, 2)), row_of("b", regions_of(1, 2, 3, width=7))):
            line = self.damaged(tmp_path, lambda _, other=other: other)
            assert "line 2: image 'b': " in line
            assert f"expected 3 regions of {REGION_WIDTH} numbers, as in {tmp_path / 't.tsv'}: line 1" in line

    def test_an_image_that_is_there_twice(self, tmp_path: Path):
        one, two = (write_tsv(tmp_path / f"{n}.tsv", rows(*part)) for n, part in enumerate((IMAGES, ("b",))))
        line = refused(tmp_path, one, two)
        assert line.startswith(f"{two}: line 1: image 'b' is there a second time, after {one}: line 2; ")

    def test_an_image_that_no_file_has(self, tmp_path: Path):
        path = write_tsv(tmp_path / "t.tsv", rows("a", "c"))
        line = refused(tmp_path, path)
        assert f"{path}: no regions of image 'b' (image 'b'); missing are 1 of 3 images; --on-missing skip" in line
        index = build(tmp_path, path, on_missing="skip")
        assert index.counts["missing_images"] == 1
        assert [skip.image_id for skip in index.skipped] == ["b"]

    def test_a_file_that_is_not_there(self, tmp_path: Path):
        assert "gone.tsv: cannot be read" in refused(tmp_path, tmp_path / "gone.tsv")

    def test_pixels_and_regions_at_once_or_neither(self, tmp_path: Path):
        path = write_tsv(tmp_path / "t.tsv", rows(*IMAGES))
        assert "--images DIR or --regions TSV: both were given" in refused(tmp_path, path, images=tmp_path)
        assert "--images DIR or --regions TSV: neither was given" in refused(tmp_path)
        assert "--resize 8: regions have no pixels" in refused(tmp_path, path, resize=8)

    def test_shards_of_pixels_where_regions_are_asked_for(self, tmp_path: Path):
        path = write_tsv(tmp_path / "t.tsv", rows(*IMAGES))
        build(tmp_path, path)
        with pytest.raises(DataError, match="holds another data set: medium regions there, pixels asked"):
            build_shards(
                format="lxmert", questions=[tmp_path / "questions.json"], images=tmp_path, out=tmp_path / "shards"
            )


class TestForms:
    """LXMERT's three kinds of JSON are told apart by their records."""

    def line(self, files: Official, out: Path) -> str:
        with pytest.raises(UserError) as told:
            files.build(out)
        return str(told.value)

    def files(self, tmp_path: Path, *records: object) -> Official:
        seen = write_tsv(tmp_path / "t.tsv", rows(*IMAGES))
        paths = []
        for number, record in enumerate(records):
            paths.append(tmp_path / f"{number}.json")
            paths[-1].write_text(json.dumps(record if isinstance(record, list) else [record]))
        return Official("lxmert", None, tuple(paths), regions=(seen,))

    def test_questions_of_both_tasks(self, tmp_path: Path):
        for of in ("vqa", "gqa"):
            out = write_lxmert(tmp_path / of, num_samples=8, seed=0, of=of).build(tmp_path / of / "out")
            index = read_index(out)
            samples = [ShardReader(out, index, ScoredSample).sample(n) for n in range(index.num_images)]
            items = [item for sample in samples for item in sample.items]
            assert {item.source for item in items} == {of}
            assert all(item.question_id.startswith("0") == (of == "gqa") for item in items)
            assert any(item.label is None for item in items)
            assert any(item.label == {} for item in items)
            assert index.counts["answered"] == sum(bool(item.label) for item in items)

    def test_statements_and_questions_do_not_mix(self, tmp_path: Path):
        stated = {"identifier": "dev-0-0-0", "img0": "a", "img1": "b", "sent": "So.", "label": 1, "uid": "x"}
        asked = {"question_id": 1, "img_id": "c", "sent": "So?", "label": {"yes": 1}}
        line = self.line(self.files(tmp_path, asked, stated), tmp_path / "out")
        assert line.startswith(f"{tmp_path / '1.json'}: statements, and {tmp_path / '0.json'}: questions")
        line = self.line(self.files(tmp_path, [asked, asked | {"question_id": "2"}]), tmp_path / "out")
        assert "0.json: entry 2: question '2': is one of GQA, and the first of VQA" in line

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"sent": "So?"}, "entry 1: expected LXMERT's"),
            ({"question_id": 1, "img_id": "a"}, "entry 1"),
            ({"question_id": 1, "img_id": "a", "sent": "So?", "label": {"yes": 1.5}}, "label 'yes': 1.5; expected"),
            ({"identifier": "dev-0-0-0", "img0": "a", "img1": "b", "sent": "So.", "label": 2}, "label 2; expected 0"),
            ({"identifier": "dev", "img0": "a", "img1": "b", "sent": "So.", "label": 1}, "identifier 'dev'; expected"),
        ],
    )
    def test_an_entry_of_another_form_is_named(self, tmp_path: Path, record: dict[str, object], message: str):
        line = self.line(self.files(tmp_path, record), tmp_path / "out")
        assert f"{tmp_path / '0.json'}: " in line
        assert message in line
        assert not (tmp_path / "out").exists()


def test_several_regions_options_add_up(tmp_path: Path):
    files = write_lxmert(tmp_path / "files", num_samples=6, seed=0)
    words = files.words(tmp_path / "one")
    place = words.index("--regions")
    apart = [*words[: place + 2], "--regions", *words[place + 2 :]]
    apart[apart.index("--out") + 1] = str(tmp_path / "two")
    assert main(words) == main(apart) == 0
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()


def test_in_several_processes_the_bytes_are_the_same(tmp_path: Path):
    files = write_lxmert(tmp_path / "files", num_samples=9, seed=0)
    given = {"format": "lxmert", "questions": files.questions, "regions": files.regions, "shard_bytes": SMALL_SHARD}
    one, two = (build_shards(out=tmp_path / str(n), workers=n, **given) for n in (1, 2))
    assert one == two


def test_base64_is_that_of_the_array():
    """The corpus writer and the reader could agree on something else than LXMERT's files have."""
    row = row_of("a", regions_of(7, 8))
    assert np.frombuffer(base64.b64decode(row["objects_id"]), "<i8").tolist() == [7, 8]
    assert len(base64.b64decode(row["features"])) == 4 * 2 * REGION_WIDTH
