"""Every task's official files become shards by `duoflow shards build`; what is none is one line and exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.annotations import READERS
from shards.format.index import read_index
from shards.format.tar_reader import ShardReader
from tests.documents import LENGTHS
from tests.official import Official
from tests.task_corpora import CORPORA
from trainer.cli import main

every_task = pytest.mark.parametrize("task", CORPORA)

Refused = Callable[..., str]
"""(files, words) -> the one line that their build ends with."""


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` takes as many as there are cores, and to start them takes longer than all else here."""
    monkeypatch.setattr("shards.build.commands._cores", lambda: 1)


def write(directory: Path, task: str, **options: Any) -> Official:
    return CORPORA[task](directory / task, **{"num_samples": 8, "seed": 0, **options})


def built_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> Refused:
    def run(files: Official, *words: object) -> str:
        out = tmp_path / "refused"
        assert main([*files.words(out), *map(str, words)]) == 2
        output = capsys.readouterr()
        assert not out.exists(), "nothing is written"
        assert output.out == ""
        (line,) = output.err.splitlines()
        return line.removeprefix("duoflow: ")

    return run


@every_task
def test_the_same_files_give_the_same_bytes_and_are_built_once(task: str, tmp_path: Path, capsys):
    files, one, other = write(tmp_path, task), tmp_path / "one", tmp_path / "other"
    assert main(files.words(one)) == main(files.words(other)) == 0
    assert built_bytes(one) == built_bytes(other)
    before = {path: path.stat().st_mtime_ns for path in one.iterdir()}
    capsys.readouterr()
    assert main(files.words(one)) == 0
    assert "already built, nothing changed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in one.iterdir()} == before


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_shards_of_any_number_of_processes_are_the_same(task: str, tmp_path: Path):
    files, one, other = write(tmp_path, task), tmp_path / "one", tmp_path / "other"
    assert main(files.words(one)) == main([*files.words(other), "--workers", "2"]) == 0
    assert built_bytes(one) == built_bytes(other)


@every_task
def test_verify_finds_no_fault_and_info_says_what_is_there(task: str, tmp_path: Path, capsys):
    files, out = write(tmp_path, task), tmp_path / "out"
    assert main(files.words(out)) == 0
    capsys.readouterr()
    assert main(["shards", "verify", str(out)]) == 0
    assert "no fault in" in capsys.readouterr().out
    assert main(["shards", "info", str(out), "--json"]) == 0
    facts, index = json.loads(capsys.readouterr().out), read_index(out)
    assert facts["format"] == task
    assert facts["counts"]["questions"] == sum(map(sum, (shard.num_questions for shard in index.shards)))
    assert facts["sources"] == sorted(path.name for path in (*files.questions, *files.annotations))
    assert main(["shards", "info", str(out)]) == 0
    assert f"{'format':<22}{task}" in capsys.readouterr().out


@every_task
def test_every_item_of_the_files_is_there_once_in_order(task: str, tmp_path: Path):
    directory = write(tmp_path, task).build(tmp_path / "out")
    index = read_index(directory)
    reader = ShardReader(directory, index, READERS[task].sample)
    samples = [reader.sample(number) for number in range(index.num_images)]
    ids = [item.item_id for sample in samples for item in sample.items]
    assert len(samples) == 8
    assert len(set(ids)) == len(ids) == index.counts["questions"] == sum(1 + number % 4 for number in range(8))
    assert [sample.sample_id for sample in samples] == sorted(sample.sample_id for sample in samples)
    images = {"nlvr2": [2], "mpdocvqa": LENGTHS}.get(task, [1])
    for number, sample in enumerate(samples):
        assert len(reader.images(number)) == len(sample.pictures) == images[number % len(images)]


@every_task
def test_files_of_another_task_are_refused_with_the_form_that_is_expected(task: str, tmp_path: Path, refused: Refused):
    forms = {"gqa": "question", "vqa": "questions", "snli_ve": "SNLI-VE", "nlvr2": "NLVR2", "lxmert": "LXMERT"}
    forms["mpdocvqa"] = "MP-DocVQA"
    own = write(tmp_path, task)
    for other in CORPORA.keys() - {task}:
        files = write(tmp_path, other, whole=True)
        line = refused(Official(task, own.images, files.questions[:1], regions=own.regions))
        assert str(files.questions[0]) in line, (other, line)
        if other != "lxmert":  # in a list, the entry and its field are named
            assert forms[task] in line, (other, line)


def test_annotations_of_questions_belong_to_vqa_alone(tmp_path: Path, refused: Refused):
    vqa = write(tmp_path, "vqa")
    for task in CORPORA.keys() - {"vqa"}:
        line = refused(write(tmp_path, task), "--annotations", vqa.annotations[0])
        assert line == f"--annotations: belongs to --format vqa, not to {task}"


class TestVqa:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Official:
        return write(tmp_path, "vqa", whole=True)

    @staticmethod
    def change(path: Path, name: str, change: Callable[[list[Any]], object]) -> None:
        content = json.loads(path.read_text())
        change(content[name])
        path.write_text(json.dumps(content))

    def test_an_annotation_without_its_question(self, files: Official, refused: Refused):
        self.change(files.questions[0], "questions", lambda rows: rows.pop())
        line = refused(files)
        assert line.startswith(f"{files.annotations[0]}: 1 annotations are of no question, such as question '70")
        assert line.endswith("give the questions and the annotations of one split")

    def test_a_question_without_its_annotation(self, files: Official, refused: Refused):
        self.change(files.annotations[0], "annotations", lambda rows: rows.pop(0))
        line = refused(files)
        assert line.startswith(f"{files.questions[0]}: entry 1 of questions: question 0 has no annotation in ")

    def test_an_annotation_about_another_image(self, files: Official, refused: Refused):
        self.change(files.annotations[0], "annotations", lambda rows: rows[0].update(image_id=9))
        assert refused(files).endswith("question 0 is about image 0, its annotation about image '9'")

    def test_a_question_that_is_annotated_twice(self, files: Official, refused: Refused):
        self.change(files.annotations[0], "annotations", lambda rows: rows.append(rows[0]))
        assert "question 0 is annotated a second time" in refused(files)

    def test_two_answers_of_one_annotator(self, files: Official, refused: Refused):
        self.change(files.annotations[0], "annotations", lambda rows: rows[0]["answers"][1].update(answer_id=1))
        assert "question 0 has two answers with one answer_id" in refused(files)

    def test_an_annotation_without_answers(self, files: Official, refused: Refused):
        self.change(files.annotations[0], "annotations", lambda rows: rows[2].update(answers=[]))
        assert f"{files.annotations[0]}: entry 3 of annotations: " in refused(files)

    def test_questions_where_annotations_should_be(self, files: Official, refused: Refused):
        line = refused(Official("vqa", files.images, files.questions, files.questions))
        assert str(files.questions[0]) in line
        assert 'expected VQA\'s {"annotations": [' in line

    def test_a_list_of_albefs_with_another_data_set(self, files: Official, tmp_path: Path, refused: Refused):
        rows = [{"image": "vg/3.png", "dataset": "okvqa", "question_id": 3, "question": "What?", "answer": ["a"]}]
        (tmp_path / "list.json").write_text(json.dumps(rows))
        line = refused(Official("vqa", files.images, (tmp_path / "list.json",)))
        assert line.endswith("list.json: entry 1: dataset 'okvqa'; expected one of vqa, vg")

    def test_without_annotations_there_are_questions_and_no_answers(self, files: Official, tmp_path: Path):
        directory = Official("vqa", files.images, files.questions).build(tmp_path / "out")
        index = read_index(directory)
        assert (index.counts["answered"], index.answers) == (0, {})
        assert index.counts["questions"] > 0
        assert not any(index.types.values())

    def test_images_are_found_under_cocos_names(self, files: Official, tmp_path: Path):
        index = read_index(files.build(tmp_path / "out"))
        assert [name for shard in index.shards for name in shard.image_ids] == sorted(map(str, range(8)))
        assert index.shards[0].image_refs[0] == "COCO_val2014_000000000000"

    def test_every_annotators_answer_is_kept(self, files: Official, tmp_path: Path):
        directory = files.build(tmp_path / "out")
        index = read_index(directory)
        reader = ShardReader(directory, index, READERS["vqa"].sample)
        known = {str(row["question_id"]): row for row in json.loads(files.annotations[0].read_text())["annotations"]}
        for number in range(index.num_images):
            for item in reader.sample(number).items:
                row = known[item.question_id]
                assert list(item.answers) == [answer["answer"] for answer in row["answers"]]
                assert (item.answer_type, item.question_type) == (row["answer_type"], row["question_type"])
                assert (item.answer, item.source) == (row["multiple_choice_answer"], "vqa")


class TestStatements:
    """SNLI-VE and NLVR2: a statement per line."""

    @staticmethod
    def change(files: Official, **values: object) -> None:
        (path,) = files.questions
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | values), *rest]) + "\n")

    def test_a_label_that_is_none_of_the_tasks(self, tmp_path: Path, refused: Refused):
        for task, name, expected in (
            ("snli_ve", "gold_label", "'maybe'; expected entailment, neutral, contradiction"),
            ("nlvr2", "label", "'maybe'; expected True or False"),
        ):
            files = write(tmp_path, task)
            self.change(files, **{name: "maybe"})
            assert refused(files) == f"{files.questions[0]}: line 1: label {expected}"

    def test_a_statement_that_names_no_image(self, tmp_path: Path, refused: Refused):
        files = write(tmp_path, "snli_ve")
        self.change(files, Flickr30K_ID=None)
        assert refused(files).startswith(f"{files.questions[0]}: line 1: no image; expected SNLI-VE's")

    def test_an_identifier_without_its_parts(self, tmp_path: Path, refused: Refused):
        files = write(tmp_path, "nlvr2")
        self.change(files, identifier="dev-1")
        assert "line 1: identifier 'dev-1'; expected split-set-pair-sentence, such as dev-850-0-0" in refused(files)

    def test_one_pair_of_images_in_two_places(self, tmp_path: Path, refused: Refused):
        files = write(tmp_path, "nlvr2")
        (path,) = files.questions
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        last = rows[-1] | {"identifier": f"{rows[-1]['identifier'].rpartition('-')[0]}-9", "directory": 77}
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, last]))
        line = refused(files)
        assert "stands for two files, '" in line
        assert "'77/" in line

    def test_albefs_form_names_pairs_by_their_places(self, tmp_path: Path):
        official = write(tmp_path, "snli_ve")
        rows = [{"image": "1000", "sentence": "A square.", "label": "entailment"}] * 1
        rows += [{"image": "1001", "sentence": "No square.", "label": "contradiction"}]
        (tmp_path / "list.json").write_text(json.dumps(rows))
        directory = Official("snli_ve", official.images, (tmp_path / "list.json",)).build(tmp_path / "out")
        reader = ShardReader(directory, read_index(directory), READERS["snli_ve"].sample)
        assert [item.item_id for number in range(2) for item in reader.sample(number).items] == ["1", "2"]
