"""Documents as shards: all pages of all windows in order, words where an OCR is given, and one line for what is not."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.annotations import READERS
from shards.build.verify import verify_shards
from shards.build.writer import build_shards
from shards.format.documents import Document
from shards.format.index import read_index
from shards.format.tar_reader import ShardReader
from tests.corpora import SMALL_SHARD
from tests.documents import (
    LENGTHS,
    PAGE,
    box_of,
    imdb_records,
    page_name,
    questions_of,
    words_on,
    write_imdb,
    write_mpdocvqa,
)
from tests.official import Official
from trainer.cli import main

NUM_DOCUMENTS = 8


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` takes as many as there are cores, and to start them takes longer than all else here."""
    monkeypatch.setattr("shards.build.commands._cores", lambda: 1)


@pytest.fixture
def files(tmp_path: Path) -> Official:
    return write_mpdocvqa(tmp_path / "files", num_samples=NUM_DOCUMENTS, seed=0)


def documents_in(directory: Path) -> list[Document]:
    index = read_index(directory)
    reader = ShardReader(directory, index, READERS["mpdocvqa"].sample)
    return [reader.sample(number) for number in range(index.num_images)]


def change(files: Official, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    document = json.loads(files.questions[0].read_text())
    edit(document["data"])
    files.questions[0].write_text(json.dumps(document))


def test_a_document_has_the_pages_of_all_its_windows_in_order(files: Official, tmp_path: Path):
    directory = files.build(tmp_path / "out")
    index, number = read_index(directory), 0
    assert len(index.shards) > 1
    documents = documents_in(directory)
    for shard in index.shards:
        lengths = [LENGTHS[(number + place) % len(LENGTHS)] for place in range(len(shard.image_ids))]
        assert shard.images_per_sample == lengths
        expected = []
        for document, length in zip(documents[number:], lengths, strict=False):
            key = f"{number:09d}"
            expected += [f"{key}.jpg"] if length == 1 else [f"{key}.{page}.jpg" for page in range(length)]
            expected.append(f"{key}.json")
            assert [page.image_id for page in document.pages] == [
                page_name(document.document_id, page) for page in range(length)
            ]
            number += 1
        with tarfile.open(directory / shard.name) as tar:
            assert tar.getnames() == expected
    assert number == NUM_DOCUMENTS
    assert verify_shards(directory).faults == []


def test_pages_come_back_with_their_bytes_and_sizes(files: Official, tmp_path: Path):
    directory = files.build(tmp_path / "out")
    reader = ShardReader(directory, read_index(directory), Document)
    for number, document in enumerate(documents_in(directory)):
        paths = [files.images / f"{page.image_id}.jpg" for page in document.pages]
        assert reader.images(number) == [path.read_bytes() for path in paths]
        assert {(page.width, page.height) for page in document.pages} == {PAGE}


def test_every_question_keeps_its_window_its_answers_and_its_page(files: Official, tmp_path: Path):
    found = {
        question.question_id: (document.document_id, question)
        for document in documents_in(files.build(tmp_path / "out"))
        for question in document.questions
    }
    asked = questions_of(files)
    assert len(found) == len(asked)
    assert len({tuple(entry["page_ids"]) for entry in asked if entry["doc_id"] == "ffbf0007"}) > 1, "windows differ"
    for entry in asked:
        name, question = found[str(entry["questionId"])]
        assert name == entry["doc_id"]
        assert question.question == entry["question"]
        assert list(question.pages) == entry["page_ids"]
        assert list(question.answers) == entry.get("answers", [])
        assert question.answer_page == entry.get("answer_page_idx")


def test_only_pages_that_are_asked_about_are_packed(files: Official, tmp_path: Path):
    change(files, lambda data: data.__setitem__(slice(None), [one for one in data if one["doc_id"] == "ffbf0002"][-1:]))
    (asked,) = questions_of(files)
    (document,) = documents_in(files.build(tmp_path / "out"))
    assert [page.image_id for page in document.pages] == asked["page_ids"]
    assert 1 <= len(document.pages) < LENGTHS[2]


def test_info_tells_long_windows_from_short_ones(files: Official, tmp_path: Path, capsys):
    files.build(tmp_path / "out")
    assert main(["shards", "info", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    sizes = [len(entry["page_ids"]) for entry in questions_of(files)]
    assert facts["window_type"] == {
        "1 to 2 pages": sum(size < 3 for size in sizes),
        "3 pages and more": sum(size >= 3 for size in sizes),
    }
    assert facts["counts"]["answered"] == len(sizes) - 1, "the last question has no answer"


def test_any_order_and_any_number_of_processes_give_the_same_bytes(files: Official, tmp_path: Path):
    one, other = files.build(tmp_path / "one"), tmp_path / "other"
    change(files, lambda data: data.reverse())
    assert main([*files.words(other), "--workers", "2"]) == 0
    for path in one.glob("*.tar"):
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_a_question_that_is_there_twice_counts_once_and_another_one_of_its_name_is_refused(
    files: Official, tmp_path: Path, capsys
):
    change(files, lambda data: data.append(data[0]))
    assert main(files.words(tmp_path / "out")) == 0
    assert read_index(tmp_path / "out").counts["duplicate_questions"] == 1
    change(files, lambda data: data[-1].update(question="Which?"))
    capsys.readouterr()
    assert main(files.words(tmp_path / "other")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "question id '1000' occurs with different content" in line


class TestOcr:
    def test_words_and_boxes_go_to_their_pages_once(self, files: Official, tmp_path: Path):
        imdb = write_imdb(tmp_path / "imdb_val.npy", imdb_records(files))
        assert main([*files.words(tmp_path / "out"), "--ocr", str(imdb)]) == 0
        assert verify_shards(tmp_path / "out").faults == []
        for document in documents_in(tmp_path / "out"):
            for page in document.pages:
                words = words_on(page.image_id)
                assert list(page.words) == words
                assert list(page.boxes) == [
                    tuple(round(side, 4) for side in box_of(number)) for number in range(len(words))
                ]
        assert [source.name for source in read_index(tmp_path / "out").sources] == ["imdb_val.npy", "val.json"]

    def test_shards_with_words_are_other_shards_and_the_same_when_built_again(self, files: Official, tmp_path, capsys):
        imdb, out = write_imdb(tmp_path / "imdb.npy", imdb_records(files)), tmp_path / "out"
        assert main([*files.words(out), "--ocr", str(imdb)]) == 0
        capsys.readouterr()
        assert main([*files.words(out), "--ocr", str(imdb)]) == 0
        assert "already built" in capsys.readouterr().out
        assert main(files.words(out)) == 2
        assert "holds another data set" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (
                lambda rows: rows[1].pop("ocr_tokens"),
                "record 2: Object missing required field `ocr_tokens`; expected an",
            ),
            (
                lambda rows: rows[1].update(ocr_tokens=["flat"]),
                "record 2: Expected `array`, got `str` - at `$.ocr",
            ),
            (lambda rows: rows[0]["ocr_tokens"].append([]), "record 1: 1 pages, 2 with words, 1 with boxes"),
            (
                lambda rows: rows[0]["ocr_tokens"][0].append("x"),
                "record 1: page 'ffbf0000_p0': 4 words and 3 boxes",
            ),
            (
                lambda rows: rows[0].update(ocr_normalized_boxes=[[[0, 0, 640, 480]] * 3]),
                "record 1: page 'ffbf0000_p0': box [0.0, 0.0, 640.0, 480.0]; expected left, top, right, bottom in",
            ),
            (
                lambda rows: rows.__delitem__(slice(1, None)),
                "page 'ffbf0001_p0' has no words in ",
            ),
        ],
    )
    def test_what_is_no_imdb_of_the_split_is_one_line(self, files: Official, tmp_path: Path, capsys, spoil, said: str):
        records = imdb_records(files)
        spoil(records)
        words = [*files.words(tmp_path / "out"), "--ocr", str(write_imdb(tmp_path / "imdb.npy", records))]
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert not (tmp_path / "out").exists()

    def test_it_belongs_to_this_format(self, files: Official, tmp_path: Path, capsys):
        words = files.words(tmp_path / "out")
        words[words.index("mpdocvqa")] = "vqa"
        assert main([*words, "--ocr", str(tmp_path / "imdb.npy")]) == 2
        assert "--ocr: belongs to --format mpdocvqa, not to vqa" in capsys.readouterr().err


class TestFaults:
    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (
                lambda data: data[1].update(page_ids=[]),
                "entry 2 of data: question 1010: document 'ffbf0001' has no pages; expected page_ids with one at least",
            ),
            (
                lambda data: data[1].update(answer_page_idx=3),
                "entry 2 of data: question 1010: answer_page_idx 3; expected 0 to 2, a place among its 3 pages",
            ),
            (
                lambda data: data[1].update(answer_page_idx=-1),
                "entry 2 of data: question 1010: answer_page_idx -1; expected 0 to 2",
            ),
            (
                lambda data: data[1].pop("answer_page_idx"),
                "entry 2 of data: question 1010: answers without answer_page_idx; expected both, or neither",
            ),
            (
                lambda data: data[1]["page_ids"].append("ffbf0001_p0"),
                "entry 2 of data: question 1010: page 'ffbf0001_p0' is in page_ids twice; expected each page once",
            ),
            (
                lambda data: data[1].update(page_ids=["ffbf0001_p0", 7]),
                "entry 2 of data: Expected `str`, got `int` - at `$.page_ids[1]`",
            ),
            (
                lambda data: data[1].update(answers="x"),
                "entry 2 of data: Expected `array | null`, got `str` - at `$.answers`",
            ),
            (lambda data: data[1].pop("doc_id"), "entry 2 of data: Object missing required field `doc_id`"),
            (lambda data: data.clear(), "no questions"),
        ],
    )
    def test_what_is_no_question_about_pages_is_one_line(self, files: Official, tmp_path: Path, capsys, edit, said):
        change(files, edit)
        assert main(files.words(tmp_path / "out")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert "val.json" in line
        assert not (tmp_path / "out").exists()

    def test_a_file_of_another_task_is_one_line(self, files: Official, tmp_path: Path, capsys):
        files.questions[0].write_text('{"questions": []}')
        assert main(files.words(tmp_path / "out")) == 2
        assert "Object missing required field `data`; expected MP-DocVQA's" in capsys.readouterr().err

    def test_a_missing_page_is_named_with_its_document(self, files: Official, tmp_path: Path, capsys):
        (files.images / "ffbf0002_p7.jpg").unlink()
        assert main(files.words(tmp_path / "out")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "ffbf0002_p7" in line
        assert "(image 'ffbf0002')" in line
        assert line.endswith(f"missing are 1 of {NUM_DOCUMENTS} images; --on-missing skip leaves them out")

    @pytest.mark.parametrize("reason", ["missing", "unreadable"])
    def test_a_document_without_one_of_its_pages_is_left_out_whole(self, files: Official, tmp_path: Path, reason: str):
        page = files.images / "ffbf0002_p7.jpg"
        page.unlink() if reason == "missing" else page.write_bytes(b"no picture")
        out = tmp_path / "out"
        assert main([*files.words(out), "--on-missing", "skip"]) == 0
        index = read_index(out)
        (skipped,) = index.skipped
        assert (skipped.image_id, skipped.image_ref, skipped.reason) == ("ffbf0002", "ffbf0002_p7", reason)
        assert skipped.image_refs == [page_name("ffbf0002", one) for one in range(LENGTHS[2])]
        assert verify_shards(out).faults == []
        assert main([*files.words(out), "--on-missing", "skip"]) == 0, "and built again it is the same"


def test_pages_can_be_made_smaller(files: Official, tmp_path: Path):
    given = {"format": "mpdocvqa", "questions": files.questions, "images": files.images, "shard_bytes": SMALL_SHARD}
    build_shards(**given, out=tmp_path / "small", resize=20)
    assert verify_shards(tmp_path / "small").faults == []
    assert {(page.width, page.height) for one in documents_in(tmp_path / "small") for page in one.pages} == {PAGE}
