"""`duoflow score`: the official lines, one clear line for what does not fit, and departures only when asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.build.writer import build_shards
from tests.corpora import write_corpus
from trainer import cli

GOLDEN = Path(__file__).parents[3] / "golden" / "gqa_eval"
FILES = {
    "--questions": GOLDEN / "questions.json",
    "--predictions": GOLDEN / "predictions.json",
    "--choices": GOLDEN / "choices.json",
    "--scene-graphs": GOLDEN / "sceneGraphs.json",
    "--attentions": GOLDEN / "attentions.json",
}

Score = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def score(capsys) -> Score:
    """Run the verb: exit code, lines on stdout, stderr."""

    def run(*words: object) -> tuple[int, list[str], str]:
        code = cli.main(["score", *map(str, words)])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err

    return run


def arguments(*names: str) -> list[object]:
    return [word for name in names for word in (name, FILES[name])]


BASE = ("--questions", "--predictions")


class Small:
    """A set of its own that a test can spoil: a query and two verifications of one image, one of them unbalanced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.records: dict[str, Any] = {
            "q1": self.record("What is it?", "cup", "query", entailed=["q3"]),
            "q2": self.record("Is it red?", "yes", "verify"),
            "q3": self.record("Is it a cup?", "yes", "verify", balanced=False),
        }
        self.predictions: Any = [{"questionId": key, "prediction": r["answer"]} for key, r in self.records.items()]
        self.choices = {key: {"valid": ["cup", "yes"], "plausible": ["yes"]} for key in self.records}
        self.scenes: Any = {"i": {"width": 100, "height": 50, "objects": {"o": {"x": 0, "y": 0, "w": 50, "h": 50}}}}
        self.attentions: Any = [{"questionId": key, "attention": [[0.1, 0.2], [0.3, 0.4]]} for key in self.records]

    @staticmethod
    def record(question: str, answer: str, kind: str, *, balanced: bool = True, entailed: Any = ()) -> dict[str, Any]:
        return {
            "question": question,
            "imageId": "i",
            "isBalanced": balanced,
            "answer": answer,
            "types": {"structural": kind, "semantic": "obj", "detailed": "x"},
            "groups": {"global": None, "local": "l"},
            "semantic": [{"operation": "select", "argument": "scene"}],
            "entailed": list(entailed),
            "annotations": {"question": {"0": "o"}, "fullAnswer": {"0": "o"}, "answer": {}},
        }

    def files(self, *names: str) -> list[object]:
        """Write everything, and name the basic files and the given ones."""
        contents = {
            "--questions": self.records,
            "--predictions": self.predictions,
            "--choices": self.choices,
            "--scene-graphs": self.scenes,
            "--attentions": self.attentions,
        }
        for name, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (self.directory / f"{name.strip('-')}.json").write_text(text)
        return [word for name in (*BASE, *names) for word in (name, self.directory / f"{name.strip('-')}.json")]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


class TestReport:
    def test_the_lines_are_the_official_ones_in_their_order(self, score: Score):
        code, lines, _ = score(*arguments(*FILES))
        assert code == 0
        assert lines[:15] == [
            "Binary: 70.24%",
            "Open: 68.38%",
            "Accuracy: 69.86%",
            "Consistency: 68.90%",
            "Validity: 87.11%",
            "Plausibility: 61.50%",
            "Grounding: 8.29%",
            "Distribution: 0.06 (lower is better)",
            "",
            "Accuracy / structural type:",
            "  choose: 71.00% (100 questions)",
            "  compare: 60.94% (128 questions)",
            "  logical: 75.96% (104 questions)",
            "  query: 68.38% (117 questions)",
            "  verify: 74.40% (125 questions)",
        ]
        assert [line for line in lines if line.endswith(":")] == [
            "Accuracy / structural type:",
            "Accuracy / semantic type:",
            "Accuracy / steps number:",
            "Accuracy / words number:",
        ]
        assert lines[-1] == "574 balanced of 900 questions, 900 predictions"

    def test_what_was_not_given_is_a_dash_with_the_option_that_gives_it(self, score: Score):
        _, lines, _ = score(*arguments(*BASE))
        assert lines[4:8] == [
            "Validity: - (needs --choices)",
            "Plausibility: - (needs --choices)",
            "Grounding: - (needs --scene-graphs and --attentions)",
            "Distribution: 0.06 (lower is better)",
        ]

    def test_the_json_is_what_the_official_script_computes(self, score: Score, tmp_path: Path):
        assert score(*arguments(*FILES), "--json", tmp_path / "scores.json")[0] == 0
        document = json.loads((tmp_path / "scores.json").read_text())
        expected = json.loads((GOLDEN / "expected.json").read_text())
        assert document["scores"].keys() == expected.keys()
        for name, value in expected.items():
            assert document["scores"][name] == (
                {key: pytest.approx(share, rel=1e-9) for key, share in value.items()}
                if isinstance(value, dict)
                else pytest.approx(value, rel=1e-9)
            )
        assert document["unavailable"] == {}
        assert document["counts"] == {
            "questions": 900,
            "balanced": 574,
            "predictions": 900,
            "unanswered": 0,
            "unknown": 0,
        }

    def test_what_is_not_there_is_null_in_the_json(self, score: Score, small: Small, tmp_path: Path):
        score(*small.files(), "--json", tmp_path / "scores.json")
        document = json.loads((tmp_path / "scores.json").read_text())
        assert document["scores"]["validity"] is None
        assert document["unavailable"]["distribution"] == "no question has a global group"

    def test_a_json_file_that_cannot_be_written_is_the_users_mistake(self, score: Score, small: Small, tmp_path: Path):
        (tmp_path / "file").write_text("")
        code, lines, error = score(*small.files(), "--json", tmp_path / "file" / "scores.json")
        assert (code, error.count("\n"), lines) == (2, 1, []), "it is found before anything is read"
        assert "--json" in error

    def test_several_files_and_a_directory_of_chunks_are_one_set(self, score: Score, tmp_path: Path):
        records = list(json.loads(FILES["--questions"].read_text()).items())
        chunks = tmp_path / "all_questions"
        chunks.mkdir()
        for number in range(3):
            (chunks / f"all_questions_{number}.json").write_text(json.dumps(dict(records[number::3])))
        whole = score(*arguments(*FILES))
        rest = arguments("--predictions", "--choices", "--scene-graphs", "--attentions")
        assert score("--questions", chunks, *rest) == whole
        assert score("--questions", *sorted(chunks.iterdir()), *rest) == whole


class TestCeiling:
    def test_it_stands_beside_the_accuracy_when_training_questions_are_given(self, score: Score, small: Small):
        words = small.files()
        train = small.directory / "train.json"
        train.write_text(json.dumps({"t": small.record("Is it?", "yes", "verify")}))
        _, lines, _ = score(*words, "--train-questions", train)
        assert lines[2] == "Accuracy: 100.00% (at most 50.00% with the answers of training)"

    def test_shards_of_the_training_split_serve_as_well(self, score: Score, small: Small, tmp_path: Path):
        corpus = write_corpus(tmp_path / "corpus", num_images=6, formats=("png",))
        out = tmp_path / "shards"
        build_shards(format="gqa", questions=[corpus.questions], images=corpus.images, out=out)
        answers = {record["answer"] for record in json.loads(corpus.questions.read_text()).values()}
        assert "yes" in answers
        assert "cup" not in answers
        _, lines, _ = score(*small.files(), "--train-shards", out)
        assert "at most 50.00%" in lines[2]


class TestConsistency:
    def test_it_is_left_out_where_entailed_questions_are_missing(self, score: Score, small: Small):
        del small.records["q3"]
        small.predictions.pop()
        _, lines, _ = score(*small.files())
        assert lines[3] == (
            "Consistency: - (needs all questions and their predictions: 1 of 1 entailed ones are missing)"
        )

    def test_it_is_left_out_where_entailed_questions_have_no_prediction(self, score: Score, small: Small):
        small.predictions.pop()
        assert score(*small.files())[1][3].startswith("Consistency: - (needs all questions and their predictions")
        assert score(*small.files(), "--missing", "wrong")[1][3].startswith("Consistency: -"), "nobody asked q3"

    def test_a_wrong_answer_asks_for_no_entailed_question(self, score: Score, small: Small):
        small.predictions = [{"questionId": "q1", "prediction": "x"}, {"questionId": "q2", "prediction": "yes"}]
        assert score(*small.files())[1][3] == "Consistency: - (no correctly answered question entails another)"

    def test_insisting_asks_for_every_question_as_the_official_script_does(self, score: Score, small: Small):
        small.predictions.pop()
        code, _, error = score(*small.files(), "--consistency")
        assert code == 2
        assert "no prediction for 1 of 3 questions, such as 'q3'" in error
        assert score(*small.files(), "--consistency", "--missing", "wrong")[1][3] == "Consistency: 0.00%"

    def test_insisting_without_the_entailed_questions_is_an_error(self, score: Score, small: Small):
        del small.records["q3"]
        small.predictions.pop()
        code, _, error = score(*small.files(), "--consistency")
        assert code == 2
        assert "--consistency: 1 of 1 entailed questions are not there, such as 'q3'" in error


class TestDepartures:
    def test_an_unanswered_question_is_an_error_or_wrong(self, score: Score, small: Small):
        del small.predictions[1]
        code, _, error = score(*small.files("--choices"))
        assert code == 2
        assert "no prediction for 1 of 2 balanced questions, such as 'q2'; answer them too, or pass --missing" in error
        _, lines, _ = score(*small.files("--choices"), "--missing", "wrong")
        assert [lines[0], lines[2], lines[4]] == ["Binary: 0.00%", "Accuracy: 50.00%", "Validity: 50.00%"]
        assert lines[-1].endswith("2 predictions; 1 balanced questions without a prediction count as wrong")

    def test_predictions_for_other_questions_are_an_error_or_ignored(self, score: Score, small: Small):
        small.predictions[1:1] = [{"questionId": f"zz{n}", "prediction": "no"} for n in range(2)]
        code, _, error = score(*small.files())
        assert code == 2
        assert "entry 2: question 'zz0' is not among the questions, like 2 of 5 entries" in error
        code, lines, _ = score(*small.files(), "--unknown", "ignore")
        assert (code, lines[2]) == (0, "Accuracy: 100.00%")
        assert lines[-1].endswith("5 predictions; 2 predictions for other questions are ignored")

    def test_a_question_that_is_merely_entailed_is_not_among_the_questions(self, score: Score, small: Small):
        del small.records["q3"]
        assert "question 'q3' is not among the questions" in score(*small.files())[2]

    @pytest.mark.parametrize(
        ("prediction", "names", "right"),
        [
            ("Cup", [], False),
            ("Cup", ["lower"], True),
            (" cup\n", ["lower"], False),
            (" cup\n", ["spaces"], True),
            ("cup.", ["period"], True),
            (" CUP. ", ["period", "lower"], False),
            (" CUP. ", ["period", "lower", "spaces"], True),
        ],
    )
    def test_predictions_are_normalised_as_named(self, score: Score, small: Small, prediction, names, right: bool):
        small.predictions[0]["prediction"] = prediction
        _, lines, _ = score(*small.files(), *(["--normalize", *names] if names else []))
        assert lines[1] == f"Open: {100 * right:.2f}%"

    @pytest.mark.parametrize(
        ("fixes", "percent"),
        [
            ([], 60),  # the object covers x < 1/2, cells 0.1 + 0.2, and is named twice
            (["rows-first"], 80),  # cells 0.1 + 0.3, twice
            (["overlaps-once"], 30),
            (["scene-region"], 160),  # the whole image once more
            (["scene-region", "overlaps-once"], 100),
        ],
    )
    def test_each_fix_of_the_grounding_is_asked_for_by_name(self, score: Score, small: Small, fixes, percent: int):
        words = small.files("--scene-graphs", "--attentions")
        assert score(*words, *(["--fix", *fixes] if fixes else []))[1][6] == f"Grounding: {percent:.2f}%"

    def test_attentions_may_be_boxes_of_object_features(self, score: Score, small: Small):
        boxes = [[0.0, 0.0, 0.25, 1.0, 0.5], [0.25, 0.0, 0.75, 1.0, 0.5]]
        for entry in small.attentions:
            entry["attention"] = boxes
        words = [*small.files("--scene-graphs", "--attentions"), "--object-features"]
        assert score(*words)[1][6] == "Grounding: 150.00%"  # 0.5 + 0.5 * 0.5, twice
        assert score(*words, "--fix", "overlaps-once")[1][6] == "Grounding: 75.00%"

    def test_common_questions_have_answers_of_their_own(self, score: Score, small: Small):
        small.records["q1"]["types"]["detailed"] = "sameCommon"
        small.predictions[0]["prediction"] = "shape"
        assert score(*small.files("--choices"))[1][4] == "Validity: 100.00%"


def test_a_prediction_that_stands_twice_may_not_contradict_itself(score: Score, small: Small):
    small.predictions.append({"questionId": "q1", "prediction": "cup"})
    assert score(*small.files())[0] == 0
    small.predictions.append({"questionId": "q1", "prediction": "mug"})
    code, _, error = score(*small.files())
    assert code == 2
    assert "entry 1: question 'q1' is answered by 'cup' here and by 'mug' elsewhere" in error


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda s: s.records["q2"].pop("answer"), "questions.json: question 'q2' has no answer; scores need"),
        (lambda s: s.records["q2"].pop("question"), "questions.json: 'q2': Object missing required field `question`"),
        (lambda s: s.records["q2"].update(entailed="q1"), "questions.json: 'q2': Expected `array | null`, got `str`"),
        (lambda s: [r.update(isBalanced=False) for r in s.records.values()], "none of 3 questions is balanced"),
        (lambda s: setattr(s, "records", '{"q1": '), "questions.json: broken JSON at byte 7"),
        (
            lambda s: setattr(s, "predictions", {"q1": "cup"}),
            "predictions.json: broken JSON at byte 0: expected a JSON",
        ),
        (lambda s: s.predictions[1].update(prediction=7), "predictions.json: entry 2: Expected `str`, got `int`"),
        (lambda s: s.predictions[1].update(questionId=7), "predictions.json: entry 2: Expected `str`, got `int`"),
        (lambda s: s.predictions[2].pop("prediction"), "predictions.json: entry 3: Object missing required field"),
        (lambda s: setattr(s, "predictions", []), "predictions.json: no prediction for 2 of 2 balanced questions"),
        (lambda s: s.choices.pop("q2"), "choices.json: no choices for 1 of 2 balanced questions, such as 'q2'"),
        (lambda s: s.choices["q2"].pop("valid"), "choices.json: 'q2': Object missing required field `valid`"),
        (lambda s: s.attentions.pop(0), "attentions.json: no attention for 1 of 2 balanced questions, such as 'q1'"),
        (lambda s: s.attentions[1].update(attention=[[1, 2]]), "attention of question 'q2' is 1 x 2; expected maps"),
        (lambda s: s.attentions[1].update(attention=[]), "attention of question 'q2' is empty; expected maps"),
        (lambda s: s.scenes.pop("i"), "4 objects that questions are about are not there, such as object 'o' of image"),
        (lambda s: s.scenes["i"].update(width=0), "scene-graphs.json: 'i': Expected `float` > 0"),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_code_2(score: Score, small: Small, spoil: Callable, line: str):
    spoil(small)
    code, lines, error = score(*small.files("--choices", "--scene-graphs", "--attentions"))
    assert (code, lines, error.count("\n")) == (2, [], 1)
    assert error.startswith("duoflow: ")
    assert line in error


@pytest.mark.parametrize(
    ("boxes", "line"),
    [([[0, 0, 1, 1]], "expected boxes [x0, y0, x1, y1, attention]"), ([[0, 0, 640, 480, 1]], "not inside 0 ... 1")],
)
def test_boxes_of_attention_are_in_parts_of_the_image(score: Score, small: Small, boxes: Any, line: str):
    small.attentions[0]["attention"] = boxes
    code, _, error = score(*small.files("--scene-graphs", "--attentions"), "--object-features")
    assert code == 2
    assert line in error


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--attentions", "x"], "--attentions without --scene-graphs"),
        (["--scene-graphs", "x"], "--scene-graphs without --attentions"),
        (["--object-features"], "--object-features changes the grounding only"),
        (["--fix", "scene-region"], "--fix scene-region changes the grounding only"),
        (
            ["--scene-graphs", "x", "--attentions", "x", "--fix", "rows-first", "--object-features"],
            "--fix rows-first is about maps",
        ),
        (["--choices", "none.json"], "none.json: cannot be read: No such file or directory"),
        (["--train-shards", "none"], "none: no such directory"),
        (["--fix", "everything"], "argument --fix: invalid choice: 'everything'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(score: Score, words: list[str], line: str):
    code, _, error = score(*arguments(*BASE), *words)
    assert (code, error.count("\n")) == (2, 1)
    assert line in error


def test_a_question_that_is_there_twice_is_refused(score: Score):
    code, _, error = score("--questions", *[FILES["--questions"]] * 2, *arguments("--predictions"))
    assert code == 2
    assert "900 questions are there more than once, such as '00000000'" in error
