"""Answers that score in part: sums that merge, and the files that LXMERT's own code reads and writes."""

import json
from pathlib import Path

import pytest
import torch

from model.config import LossConfig
from shards.format.records import ScoredQuestion
from trainer.cli import main
from trainer.scoring.metrics import merge_over_ranks
from trainer.scoring.scored import ScoredAnswers
from trainer.tasks import Outputs, task_named

VOCABULARY = frozenset({"red", "blue", "yes"})
LABELS = ({"red": 1, "blue": 0.3}, {"yes": 0.6, "maybe": 0.9}, {}, {"purple": 1.0})
SAID = ("blue", "yes", "red", "red")


def scored(labels=LABELS, said=SAID) -> ScoredAnswers:
    scores = ScoredAnswers.empty()
    for label, answer in zip(labels, said, strict=True):
        scores.add(answer, label, VOCABULARY)
    return scores


def test_the_mean_is_over_all_questions_and_the_oracle_knows_the_vocabulary_alone():
    assert scored().as_metrics() == {"val/accuracy": 0.225, "val/oracle": 0.4}
    assert scored().as_counts() == {"val/count": 4}
    assert ScoredAnswers.empty().as_metrics() == ScoredAnswers.empty().as_counts() == {}


@pytest.mark.parametrize("cut", range(5))
def test_no_value_depends_on_how_questions_were_split(cut: int):
    one, two = scored(LABELS[:cut], SAID[:cut]), scored(LABELS[cut:], SAID[cut:])
    assert one + two == scored()
    (merged,) = merge_over_ranks([one], lambda vector: [a + b for a, b in zip(vector, two.to_vector(), strict=True)])
    assert merged == scored()


def test_the_sums_of_a_large_split_pass_through_single_precision():
    large = ScoredAnswers([447_793 * 10**6, 447_792_700_001], 447_793)
    (merged,) = merge_over_ranks([large], lambda vector: torch.tensor(vector, dtype=torch.float32).tolist())
    assert merged == large


def question(name: str, source: str, label: dict[str, float] | None) -> ScoredQuestion:
    return ScoredQuestion(question_id=name, question="What?", label=label, source=source)


def test_a_question_without_a_label_is_answered_and_not_counted():
    task = task_named("lxmert")
    scores = task.scores()
    asked = [question("10", "vqa", {"red": 1}), question("9", "vqa", None)]
    said = task.observe(scores, asked, Outputs(classes=["red", "blue"], vocabulary=VOCABULARY), False)
    assert said == {"10": ["red", "vqa"], "9": ["blue", "vqa"]}
    assert scores[0].as_counts() == {"val/count": 1}
    assert task.metrics(LossConfig()) == ("accuracy", "oracle")


def test_files_are_byte_for_byte_those_of_lxmerts_dump_result():
    """`json.dump(result, f, indent=4, sort_keys=True)` of its vqa_data.py and gqa_data.py."""
    task = task_named("lxmert")
    made = task.dump({"10": ["red", "vqa"], "9": ["grün", "vqa"]})
    assert (made.ending, made.content) == (
        "json",
        b'[\n    {\n        "answer": "gr\\u00fcn",\n        "question_id": 9\n    },\n'
        b'    {\n        "answer": "red",\n        "question_id": 10\n    }\n]',
    )
    made = task.dump({"b": ["red", "gqa"], "07": ["yes", "gqa"]})
    assert (made.ending, made.content) == (
        "json",
        b'[\n    {\n        "prediction": "yes",\n        "questionId": "07"\n    },\n'
        b'    {\n        "prediction": "red",\n        "questionId": "b"\n    }\n]',
    )


class TestScore:
    """`duoflow score --task lxmert`"""

    def run(self, tmp_path: Path, questions: list, answers: list, capsys) -> tuple[int, str]:
        files = {"--questions": tmp_path / "q.json", "--predictions": tmp_path / "p.json"}
        for path, content in zip(files.values(), (questions, answers), strict=True):
            path.write_text(json.dumps(content))
        words = [str(word) for pair in files.items() for word in pair]
        code = main(["score", "--task", "lxmert", *words, "--json", str(tmp_path / "s.json")])
        output = capsys.readouterr()
        return code, output.out if code == 0 else output.err

    def test_both_submission_formats_are_scored(self, tmp_path: Path, capsys):
        for ids, row in (
            ((1, 2), lambda name, said: {"question_id": name, "answer": said}),
            (("01", "2"), lambda name, said: {"questionId": name, "prediction": said}),
        ):
            labels = ({"red": 1, "blue": 0.3}, {"yes": 0.6})
            asked = [
                {"question_id": n, "img_id": "a", "sent": "?", "label": x} for n, x in zip(ids, labels, strict=True)
            ]
            code, said = self.run(tmp_path, asked, [row(ids[0], "blue"), row(ids[1], "no")], capsys)
            assert (code, said.splitlines()[0]) == (0, "Accuracy: 15.00 %")
            assert json.loads((tmp_path / "s.json").read_text())["scores"] == {"accuracy": 0.15}

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            ([], "no answer for 1 of 1 questions, such as 1"),
            ([{"question_id": 2, "answer": "x"}], "question 2 is not among the questions"),
            ([{"question_id": 1, "answer": "x"}] * 2, "entry 2: question 1 is answered a second time"),
            ([{"question_id": 1}], "entry 1: expected [{"),
        ],
    )
    def test_files_that_do_not_fit_are_one_line(self, tmp_path: Path, capsys, answers: list, message: str):
        asked = [{"question_id": 1, "img_id": "a", "sent": "?", "label": {"x": 1}}]
        code, said = self.run(tmp_path, asked, answers, capsys)
        assert code == 2
        assert message in said
        assert said.count("\n") == 1

    def test_questions_without_a_label_cannot_be_scored(self, tmp_path: Path, capsys):
        code, said = self.run(tmp_path, [{"question_id": 1, "img_id": "a", "sent": "?"}], [], capsys)
        assert code == 2
        assert "q.json: entry 1: question 1: no label" in said
