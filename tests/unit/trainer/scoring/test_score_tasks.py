"""`duoflow score --task`: official numbers from official files, each option for the task that it belongs to."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.scoring.task_files import GOLDEN, GQA, Files, Score, nlvr2_files, snli_ve_files, vqa_files


def written(score: Score, files: Files, *words: object) -> dict[str, Any]:
    """The JSON of a run that succeeds."""
    out = files.directory / "written.json"
    code, _, error = score(*files.words(), "--json", out, *words)
    assert code == 0, error
    return json.loads(out.read_text())


class TestVqa:
    def test_the_lines_are_those_of_the_official_demo(self, score: Score, vqa: Files):
        code, lines, _ = score(*vqa.words())
        assert code == 0
        assert lines == [
            "Overall Accuracy is: 58.00",
            "",
            "Per Question Type Accuracy is the following:",
            "what is : 72.00",
            "is the : 44.00",
            "",
            "Per Answer Type Accuracy is the following:",
            "yes/no : 100.00",
            "number : 72.50",
            "other : 38.00",
        ]

    def test_the_json_has_the_scripts_numbers_unrounded(self, score: Score, vqa: Files):
        vqa.contents["predictions"][0]["answer"] = "no"
        del vqa.contents["questions"]["questions"][9], vqa.contents["annotations"]["annotations"][9]
        vqa.contents["predictions"].pop()
        document = written(score, vqa)
        assert document["task"] == "vqa"
        assert document["counts"] == {"questions": 9}
        assert document["scores"]["accuracy"] == pytest.approx((580 - 200) / 9, rel=1e-12)
        assert document["scores"]["perAnswerType"]["number"] == pytest.approx(190 / 3, rel=1e-12)
        assert set(document["scores"]) == {"accuracy", "perAnswerType", "perQuestionType"}

    def test_rounded_numbers_are_as_the_script_returns_them(self, score: Score, vqa: Files):
        document = json.loads((GOLDEN / "vqa_quirks.json").read_text(encoding="utf-8"))
        cases = {int(key): case for key, case in document["cases"].items()}
        vqa.contents["questions"]["questions"] = [{"question_id": key, "image_id": 1, "question": "?"} for key in cases]
        vqa.contents["annotations"]["annotations"] = [
            {
                "question_id": key,
                "answers": [{"answer": text, "answer_id": number} for number, text in enumerate(case["answers"])],
                "answer_type": case["answer_type"],
                "question_type": case["question_type"],
            }
            for key, case in cases.items()
        ]
        vqa.contents["predictions"] = [
            {"question_id": key, "answer": case["prediction"]} for key, case in cases.items()
        ]
        scores = written(score, vqa, "--rounded")["scores"]
        assert scores["accuracy"] == document["accuracy"]["overall"]
        assert scores["perAnswerType"] == document["accuracy"]["perAnswerType"]
        assert scores["perQuestionType"] == document["accuracy"]["perQuestionType"]

    def test_the_answers_are_in_a_file_of_their_own(self, score: Score, vqa: Files):
        del vqa.contents["annotations"]
        code, lines, error = score(*vqa.words())
        assert (code, lines, error.count("\n")) == (2, [], 1)
        assert "--task vqa: its answers are not in the questions; add --annotations F" in error


class TestNlvr2:
    def test_the_lines_are_those_of_the_official_script(self, score: Score, nlvr2: Files):
        code, lines, _ = score(*nlvr2.words())
        assert code == 0
        assert lines == [
            "precision=0.8571428571428571",
            "consistency=0.6666666666666666",
            "",
            "7 pairs, 3 sentences",
        ]

    @pytest.mark.parametrize("words", [[], ["--rounded"]])
    def test_the_json_has_the_scripts_numbers_which_it_does_not_round(self, score: Score, nlvr2: Files, words):
        assert written(score, nlvr2, *words) == {
            "task": "nlvr2",
            "scores": {"accuracy": 0.8571428571428571, "consistency": 0.6666666666666666},
            "counts": {"questions": 7, "sentences": 3, "unknown": 0},
        }

    def test_labels_are_compared_in_lower_case_and_later_columns_do_not_count(self, score: Score, nlvr2: Files):
        before = score(*nlvr2.words())
        text = nlvr2.contents["predictions"]
        nlvr2.contents["predictions"] = text.replace("True", "TRUE,0.9").replace("False", "false,0.1,x")
        assert score(*nlvr2.words()) == before

    def test_line_ends_a_byte_order_mark_and_blank_lines_do_not_matter(self, score: Score, nlvr2: Files):
        before = score(*nlvr2.words())
        text = nlvr2.contents["predictions"]
        nlvr2.contents["predictions"] = "\ufeff" + text.replace("\n", "\r\n") + "\n\n"
        nlvr2.contents["questions"] = "\ufeff" + nlvr2.contents["questions"] + "\n"
        assert score(*nlvr2.words()) == before

    def test_lines_about_other_pairs_are_ignored_and_counted(self, score: Score, nlvr2: Files):
        nlvr2.contents["predictions"] = "identifier,prediction\n" + nlvr2.contents["predictions"] + "dev-9-0-0,True\n"
        code, lines, _ = score(*nlvr2.words())
        assert (code, lines[0]) == (0, "precision=0.8571428571428571")
        assert lines[-1] == "7 pairs, 3 sentences; 2 lines about other pairs are ignored"
        assert written(score, nlvr2)["counts"]["unknown"] == 2

    def test_labelled_pairs_may_be_a_json_array(self, score: Score, nlvr2: Files):
        before = score(*nlvr2.words())
        nlvr2.contents["questions"] = [json.loads(line) for line in nlvr2.contents["questions"].splitlines()]
        assert score(*nlvr2.words()) == before


class TestSnliVe:
    def test_the_accuracy_stands_above_that_of_each_label(self, score: Score, snli_ve: Files):
        snli_ve.contents["predictions"][1]["prediction"] = "entailment"
        code, lines, _ = score(*snli_ve.words())
        assert code == 0
        assert lines == [
            "Accuracy: 0.6667",
            "",
            "Accuracy / label:",
            "  entailment: 1.0000 (1 pairs)",
            "  neutral: 0.0000 (1 pairs)",
            "  contradiction: 1.0000 (1 pairs)",
        ]

    def test_the_json_is_unrounded_unless_asked(self, score: Score, snli_ve: Files):
        snli_ve.contents["predictions"][1]["prediction"] = "entailment"
        per_label = {"entailment": 1.0, "neutral": 0.0, "contradiction": 1.0}
        assert written(score, snli_ve) == {
            "task": "snli_ve",
            "scores": {"accuracy": 2 / 3, "perLabel": per_label},
            "counts": {"questions": 3, "perLabel": dict.fromkeys(per_label, 1)},
        }
        assert written(score, snli_ve, "--rounded")["scores"] == {"accuracy": 0.6667, "perLabel": per_label}

    def test_question_id_is_another_name_of_pairid(self, score: Score, snli_ve: Files):
        before = score(*snli_ve.words())
        for entry in snli_ve.contents["predictions"]:
            entry["question_id"] = entry.pop("pairID")
        assert score(*snli_ve.words()) == before
        snli_ve.contents["questions"] = snli_ve.contents["questions"].replace("pairID", "question_id")
        assert score(*snli_ve.words()) == before

    def test_rows_without_a_name_are_named_by_their_places(self, score: Score, snli_ve: Files):
        rows = [{"image": 1, "sentence": "A man.", "label": label} for label in ("neutral", "entailment")]
        snli_ve.contents["questions"] = rows
        snli_ve.contents["predictions"] = [
            {"question_id": 2, "prediction": "entailment"},
            {"question_id": "1", "prediction": "contradiction"},
        ]
        code, lines, _ = score(*snli_ve.words())
        assert (code, lines[0]) == (0, "Accuracy: 0.5000")


class TestOptions:
    @pytest.mark.parametrize(
        "option",
        [
            ["--choices", "F"],
            ["--scene-graphs", "F"],
            ["--attentions", "F"],
            ["--object-features"],
            ["--consistency"],
            ["--train-questions", "F"],
            ["--train-shards", "F"],
            ["--missing", "wrong"],
            ["--unknown", "ignore"],
            ["--normalize", "lower"],
            ["--fix", "overlaps-once"],
        ],
    )
    def test_an_option_of_gqa_belongs_to_gqa(self, score: Score, vqa: Files, option: list[str]):
        code, lines, error = score(*vqa.words(), *option)
        assert (code, lines, error.count("\n")) == (2, [], 1)
        assert f"{option[0]}: belongs to --task gqa; leave it out of --task vqa" in error

    @pytest.mark.parametrize("task", ["gqa", "nlvr2", "snli_ve"])
    def test_annotations_belong_to_vqa(self, score: Score, vqa: Files, task: str):
        vqa.task = task
        code, _, error = score(*vqa.words())
        assert (code, error.count("\n")) == (2, 1)
        assert f"--annotations: belongs to --task vqa; leave it out of --task {task}" in error

    @pytest.mark.parametrize("files", [vqa_files, nlvr2_files, snli_ve_files])
    def test_questions_are_one_file_but_for_gqa(self, score: Score, tmp_path: Path, files):
        given = files(tmp_path)
        words = given.words()
        code, _, error = score(*words, "--questions", tmp_path / "questions.json", tmp_path / "questions.json")
        assert (code, error.count("\n")) == (2, 1)
        assert f"--questions: --task {given.task} takes one file; found 2" in error

    @pytest.mark.parametrize("files", [vqa_files, nlvr2_files, snli_ve_files])
    @pytest.mark.parametrize("name", ["questions", "predictions"])
    def test_a_file_that_is_not_there_is_named(self, score: Score, tmp_path: Path, files, name: str):
        words = files(tmp_path).words()
        (tmp_path / f"{name}.json").unlink()
        code, lines, error = score(*words)
        assert (code, lines, error.count("\n")) == (2, [], 1)
        assert f"{name}.json: cannot be read: No such file or directory" in error

    def test_a_directory_is_no_file(self, score: Score, vqa: Files):
        code, _, error = score(*vqa.words(), "--questions", vqa.directory)
        assert (code, error.count("\n")) == (2, 1)
        assert "cannot be read: Is a directory" in error

    def test_rounded_numbers_need_a_file_to_be_in(self, score: Score, nlvr2: Files):
        code, lines, error = score(*nlvr2.words(), "--rounded")
        assert (code, lines) == (2, [])
        assert "--rounded is about the file of --json; add --json F" in error

    def test_a_json_file_that_cannot_be_written_is_found_before_anything_is_read(self, score: Score, nlvr2: Files):
        (nlvr2.directory / "file").write_text("")
        code, lines, error = score(*nlvr2.words(), "--json", nlvr2.directory / "file" / "scores.json")
        assert (code, lines, error.count("\n")) == (2, [], 1)

    def test_an_unknown_task_is_refused_with_the_known_ones(self, score: Score, nlvr2: Files):
        nlvr2.task = "nlvr3"
        code, _, error = score(*nlvr2.words())
        assert (code, error.count("\n")) == (2, 1)
        assert all(repr(task) in error for task in ("gqa", "vqa", "nlvr2", "snli_ve"))


class TestGqa:
    words = ("--questions", GQA / "questions.json", "--predictions", GQA / "predictions.json")

    def test_it_is_what_is_scored_without_a_task(self, score: Score, tmp_path: Path):
        plain = score(*self.words, "--json", tmp_path / "plain.json")
        named = score("--task", "gqa", *self.words, "--json", tmp_path / "named.json")
        assert plain == named
        assert (tmp_path / "plain.json").read_bytes() == (tmp_path / "named.json").read_bytes()
        keys = ["scores", "unavailable", "answer_vocabulary_ceiling", "counts", "options"]
        assert list(json.loads((tmp_path / "plain.json").read_text())) == keys

    def test_rounded_numbers_are_the_printed_ones(self, score: Score, tmp_path: Path):
        _, lines, _ = score(*self.words, "--rounded", "--json", tmp_path / "scores.json")
        scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
        assert lines[2] == f"Accuracy: {scores['accuracy']:.2f}%"
        assert (scores["accuracy"], scores["validity"]) == (69.86, None)
        assert scores["accuracyPerStructuralType"]["compare"] == [60.94, 128]


def test_scoring_needs_no_torch():
    modules = ["vqa", "vqa_files", "nlvr2", "nlvr2_files", "snli_ve", "snli_ve_files"]
    program = (
        f"import sys; {'; '.join(f'import trainer.scoring.{name}' for name in modules)}; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
