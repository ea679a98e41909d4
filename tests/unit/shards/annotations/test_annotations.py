"""Annotation files become typed questions, one at a time; a fault names its file and its place."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.annotations import READERS, Annotation, gqa, json_stream
from shards.annotations.json_stream import iterate_members
from shards.annotations.scene_graphs import SceneGraphs
from shards.errors import DataError

SAMPLE = Path(__file__).parents[5] / "shared" / "data" / "gqa_annotations_sample" / "train_all_questions_0.json"

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def read(format: str, path: Path, scenes: Path | None = None) -> list[Annotation]:
    table = path.with_name(path.name + ".scenes.sqlite")
    table.unlink(missing_ok=True)
    graphs = SceneGraphs(scenes, table, lambda _: None)
    try:
        return list(READERS[format].read(path, graphs, lambda _: None))
    finally:
        graphs.close()


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


class TestStream:
    @settings(max_examples=60, deadline=None)
    @given(
        content=st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=5),
        chunk=st.integers(1, 9),
        ascii=st.booleans(),
        indent=st.sampled_from([None, 1]),
    )
    def test_members_are_those_of_the_whole_file_for_every_chunk_size(
        self, tmp_path_factory, content, chunk, ascii, indent
    ):
        path = tmp_path_factory.mktemp("stream") / "file.json"
        try:
            path.write_text(json.dumps(content, ensure_ascii=ascii, indent=indent), encoding="utf-8")
        except UnicodeEncodeError:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_stream, "CHUNK", chunk)
            assert dict(iterate_members(path, lambda _: None)) == content

    def test_a_key_that_occurs_twice_is_seen_twice(self, tmp_path):
        path = write(tmp_path / "file.json", '{"a": 1, "b": 2, "a": 3}')
        assert list(iterate_members(path, lambda _: None)) == [("a", 1), ("b", 2), ("a", 3)]

    def test_every_truncation_is_an_error_that_names_file_and_byte(self, tmp_path):
        text = json.dumps({"1": {"q": "é?", "n": [1, 2.5, None]}, "2": {}}, ensure_ascii=False).encode()
        path = tmp_path / "file.json"
        for length in range(len(text)):
            path.write_bytes(text[:length])
            with pytest.raises(DataError, match=r"file\.json: (broken JSON at byte \d+|not UTF-8 text at byte \d+): "):
                list(iterate_members(path, lambda _: None))

    @pytest.mark.parametrize("chunk", [5, 1 << 20])
    def test_the_offset_counts_bytes_and_points_at_the_fault(self, tmp_path, monkeypatch, chunk):
        monkeypatch.setattr(json_stream, "CHUNK", chunk)
        good = '{"äöü": {"ß": "€"}, "2": '.encode()
        path = tmp_path / "file.json"
        path.write_bytes(good + b"oops}")
        with pytest.raises(DataError, match=f"at byte {len(good)}: "):
            list(iterate_members(path, lambda _: None))

    @pytest.mark.parametrize("text", ["[1]", "", "{1: 2}", '{"a" 1}', '{"a": 1,}', '{"a": 1} x', '{"a": 1 "b": 2}'])
    def test_what_is_not_one_object_is_refused(self, tmp_path, text):
        with pytest.raises(DataError, match="broken JSON at byte"):
            list(iterate_members(write(tmp_path / "file.json", text), lambda _: None))

    def test_a_member_that_never_ends_does_not_fill_the_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(json_stream, "CHUNK", 1 << 10)
        monkeypatch.setattr(json_stream, "LONGEST_MEMBER", 8 << 10)
        path = write(tmp_path / "file.json", '{"1": [' + "1, " * 100_000)
        read_bytes: list[int] = []
        with pytest.raises(DataError, match="expected one record per id"):
            list(iterate_members(path, read_bytes.append))
        assert sum(read_bytes) < 16 << 10

    def test_a_deep_nest_is_an_error_and_not_a_crash(self, tmp_path):
        path = write(tmp_path / "file.json", '{"1": ' + "[" * 200_000 + "]" * 200_000 + "}")
        with pytest.raises(DataError, match="nested too deep"):
            list(iterate_members(path, lambda _: None))

    def test_the_bytes_told_add_up_to_the_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(json_stream, "CHUNK", 10)
        path = write(tmp_path / "file.json", {str(number): "ü" for number in range(20)})
        told: list[int] = []
        assert len(list(iterate_members(path, told.append))) == 20
        assert sum(told) == path.stat().st_size


class TestGqa:
    def test_records_of_test_files_hold_only_three_fields(self, tmp_path):
        path = write(tmp_path / "q.json", {"0499855": {"imageId": "n12", "question": "Why?", "isBalanced": False}})
        [(image_id, ref, question)] = read("gqa", path)
        assert (image_id, ref) == ("n12", ("n12",))
        assert (question.question_id, question.question, question.is_balanced) == ("0499855", "Why?", False)
        assert (question.answer, question.steps, question.options) == (None, None, ())

    @pytest.mark.parametrize(
        ("record", "what"),
        [
            ({"question": "Why?"}, "imageId"),
            ({"question": "Why?", "imageId": 7}, "imageId"),
            ({"question": "Why?", "imageId": ""}, "imageId"),
            ({"imageId": "1"}, "question"),
            ("text", "object"),
        ],
    )
    def test_a_record_without_image_or_question_is_named_by_file_and_id(self, tmp_path, record, what):
        path = write(tmp_path / "q.json", {"1": {"question": "Why?", "imageId": "1"}, "077": record})
        with pytest.raises(DataError, match=rf"q\.json: question '077': .*{what}"):
            read("gqa", path)

    @pytest.mark.parametrize(
        ("operation", "argument", "answer", "options"),
        [
            ("choose vposition", "top|bottom", "top", ("top", "bottom")),
            ("choose color", "black|silver", None, ("black", "silver")),
            ("choose rel", "girl,to the left of|to the right of,s (123)", "left", ("left", "right")),
            ("choose rel", "plate,above|below,s (4274560)", "below", ("above", "below")),
            ("choose rel", "man,sitting on|standing on,o (5)", "sitting on", ("sitting on", "standing on")),
            ("choose rel", "girl,to the left of|to the right of,s (123)", None, ("to the left of", "to the right of")),
            ("choose name", "cat (12)|dog (-)", "dog", ("cat", "dog")),
            ("choose older", "", "man", ()),
        ],
    )
    def test_options_are_the_alternatives_in_the_words_of_the_answers(self, operation, argument, answer, options):
        assert gqa.choose_options(operation, argument, answer) == options

    def test_steps_leave_out_what_the_official_script_leaves_out(self, tmp_path):
        names = [
            ("select", "a"),
            ("exist", "?"),
            ("query", "name"),
            ("query", "color"),
            ("choose name", "a|b"),
            ("or", ""),
        ]
        semantic = [{"operation": name, "argument": argument, "dependencies": []} for name, argument in names]
        path = write(tmp_path / "q.json", {"1": {"imageId": "1", "question": "?", "semantic": semantic}})
        assert read("gqa", path)[0].item.steps == 3

    def test_boxes_come_from_the_scene_graph_of_the_image(self, tmp_path):
        record = {
            "imageId": "7",
            "question": "?",
            "annotations": {"question": {"2:4": "11"}, "answer": {"0": "12"}, "fullAnswer": {"1": "11", "5": "99"}},
        }
        scene = {"width": 9, "height": 9, "objects": {"11": {"name": "a", "x": 1, "y": 2, "w": 3, "h": 4}}}
        scene["objects"]["12"] = {"name": "b", "x": 5, "y": 6, "w": 7.5, "h": 8}
        questions = write(tmp_path / "q.json", {"1": record, "2": {**record, "imageId": "8"}})
        scenes = write(tmp_path / "s.json", {"7": scene})
        with_scene, without = (annotation.item.boxes for annotation in read("gqa", questions, scenes))
        assert (with_scene.question, with_scene.answer) == ({"2:4": (1, 2, 3, 4)}, {"0": (5, 6, 7.5, 8)})
        assert with_scene.full_answer == {"1": (1, 2, 3, 4)}
        assert (without.question, without.answer, without.full_answer) == ({}, {}, {})

    def test_a_scene_without_coordinates_is_named(self, tmp_path):
        questions = write(tmp_path / "q.json", {})
        scenes = write(tmp_path / "s.json", {"7": {"objects": {"11": {"x": 1, "y": 2, "w": 3}}}})
        with pytest.raises(DataError, match=r"s\.json: scene of image '7': .*`h`"):
            read("gqa", questions, scenes)

    def test_a_directory_stands_for_its_chunks_in_the_order_of_their_numbers(self, tmp_path):
        for number in (10, 2, 0):
            write(tmp_path / f"train_all_questions_{number}.json", {})
        write(tmp_path / "readme.txt", "")
        names = [path.name for path in READERS["gqa"].expand([tmp_path])]
        assert names == [f"train_all_questions_{number}.json" for number in (0, 2, 10)]
        write(tmp_path / "val_all_questions_0.json", {})
        with pytest.raises(DataError, match="chunks of several sets: train_all_questions, val_all_questions"):
            READERS["gqa"].expand([tmp_path])

    @pytest.mark.skipif(not SAMPLE.exists(), reason=f"no real GQA records at {SAMPLE}")
    def test_real_records_are_read_as_they_are(self, tmp_path):
        copy = tmp_path / SAMPLE.name
        copy.write_bytes(SAMPLE.read_bytes())
        records = json.loads(copy.read_text())
        annotations = read("gqa", copy)
        assert [annotation.item.question_id for annotation in annotations] == list(records)
        for image_id, _, question in annotations:
            record = records[question.question_id]
            assert image_id == record["imageId"]
            assert (question.question, question.answer) == (record["question"], record["answer"])
            assert (question.full_answer, question.is_balanced) == (record["fullAnswer"], record["isBalanced"])
            assert (question.groups.global_, question.groups.local) == tuple(record["groups"].values())
            assert question.types.structural == record["types"]["structural"]
            assert question.entailed == tuple(record["entailed"])
            assert 1 <= question.steps <= 9
            assert bool(question.options) == (question.types.structural == "choose")
            assert not question.options or question.answer in question.options


class TestTables:
    ROWS = (
        {
            "image": "a/1.jpg",
            "question": 'Is it "big"?',
            "answer": "yes",
            "question_id": "01",
            "full_answer": "Yes, it is.",
        },
        {"image": "a/1.jpg", "question": "Größe,\nFarbe?", "answer": None, "question_id": None, "full_answer": None},
    )

    def write_both(self, directory: Path) -> tuple[Path, Path]:
        lines = [
            json.dumps({name: value for name, value in row.items() if value or name == "answer"}) for row in self.ROWS
        ]
        jsonl = write(directory / "rows.jsonl", "\n\n".join(lines))
        table = directory / "rows.csv"
        with table.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(self.ROWS[0]))
            writer.writeheader()
            writer.writerows(self.ROWS)
        return jsonl, table

    def test_jsonl_and_csv_say_the_same(self, tmp_path):
        jsonl, table = self.write_both(tmp_path)
        first, second = read("jsonl", jsonl)
        assert read("csv", table) == [first, second]
        assert (first.sample_id, first.refs, first.item.question_id) == ("a/1.jpg", ("a/1.jpg",), "01")
        assert (first.item.answer, second.item.answer) == ("yes", None)

    def test_an_id_made_from_the_row_depends_on_the_row_alone(self, tmp_path):
        rows = [
            {"image": "1.jpg", "question": "a?", "answer": "b"},
            {"image": "1.jpg", "question": "a?b", "answer": ""},
        ]
        path = tmp_path / "rows.jsonl"
        ids = []
        for order in (rows, rows[::-1]):
            path.write_text("\n".join(json.dumps(row) for row in order))
            ids.append({annotation.item.question for annotation in read("jsonl", path)})
            ids.append({annotation.item.question_id for annotation in read("jsonl", path)})
        assert ids[0] == ids[2]
        assert ids[1] == ids[3]
        assert len(ids[1]) == 2

    def test_image_and_question_ids_become_strings(self, tmp_path):
        row = {"image": "1.jpg", "question": "a?", "answer": "b", "image_id": 7, "question_id": 12}
        [annotation] = read("jsonl", write(tmp_path / "rows.jsonl", row))
        assert (annotation.sample_id, annotation.refs, annotation.item.question_id) == ("7", ("1.jpg",), "12")

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ('{"image": "1.jpg", "question": "a?"}', "answer"),
            ('{"image": "", "question": "a?", "answer": "b"}', "image is empty"),
            ('{"image": "1.jpg", "question": "a?", "answer": 3}', "answer"),
            ('{"image": "1.jpg", ', "truncated"),
            ("[]", "object"),
        ],
    )
    def test_a_bad_line_is_named_by_number_and_byte(self, tmp_path, line, what):
        good = '{"image": "1.jpg", "question": "ä?", "answer": "b"}\n'
        path = write(tmp_path / "rows.jsonl", good + "\n" + line)
        with pytest.raises(DataError, match=rf"rows\.jsonl: line 3 \(byte {len(good.encode()) + 1}\): .*{what}"):
            read("jsonl", path)

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("image,question\n", "no column answer; found: image, question"),
            ("", "no column image, question, answer; found: nothing"),
            ("image,question,answer,image\n", "two columns of one name"),
            ("image,question,answer\n1.jpg,a?\n", "line 2: 2 cells; expected 3"),
            ("image,question,answer\n1.jpg,a?,b\n,a?,b\n", "line 3: image is empty"),
            ('image,question,answer\n1.jpg,"a?,b\n', "not a row of CSV"),
        ],
    )
    def test_a_csv_that_does_not_fit_its_header_is_refused(self, tmp_path, text, what):
        with pytest.raises(DataError, match=what):
            read("csv", write(tmp_path / "rows.csv", text))

    def test_text_that_is_not_utf8_is_refused(self, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_bytes(b"image,question,answer\n1.jpg,\xff?,b\n")
        with pytest.raises(DataError, match=r"rows\.csv: line \d+: not a row of CSV in UTF-8"):
            read("csv", path)
