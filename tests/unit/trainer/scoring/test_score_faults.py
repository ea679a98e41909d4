"""`duoflow score --task`: one clear line and exit code 2 for whatever does not fit in the files of a task."""

import json

import pytest

from tests.unit.trainer.scoring.task_files import GQA, Files, Score


class TestVqa:
    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (
                lambda c: c.update(questions=json.loads((GQA / "questions.json").read_text())),
                "questions.json: Object missing required field `questions`; expected VQA's {",
            ),
            (
                lambda c: c.update(questions=c["annotations"]),
                "questions.json: Object missing required field `questions`; expected VQA's {",
            ),
            (lambda c: c.update(questions=[]), "questions.json: Expected `object`, got `array`; expected VQA's {"),
            (lambda c: c.update(questions='{"questions": [}'), "questions.json: broken JSON at byte 15: "),
            (lambda c: c.update(questions='{"questions": ['), "questions.json: broken JSON at byte 15: "),
            (
                lambda c: c.update(questions=b'{"questions": [{"question_id": 1, "image_id": 1, "question": "\xff"}]}'),
                "questions.json: entry 1 of questions: ",  # msgspec says what, in words that differ between releases
            ),
            (
                lambda c: c.update(questions='{"info": ' + 99999 * "["),
                "questions.json: broken JSON: nested too deep; expected VQA's {",
            ),
            (
                lambda c: c["questions"]["questions"][2].pop("image_id"),
                "questions.json: entry 3 of questions: Object missing required field `image_id`",
            ),
            (
                lambda c: c["questions"]["questions"].append(c["questions"]["questions"][0]),
                "questions.json: entry 11 of questions: question 1 is there twice; expected each question once",
            ),
            (
                lambda c: c.update(annotations=c["questions"]),
                "annotations.json: Object missing required field `annotations`; expected VQA's {",
            ),
            (
                lambda c: c["annotations"]["annotations"][1].pop("answer_type"),
                "annotations.json: entry 2 of annotations: Object missing required field `answer_type`",
            ),
            (
                lambda c: c["annotations"]["annotations"][1].update(answers=[]),
                "annotations.json: entry 2 of annotations: Expected `array` of length >= 1 - at `$.answers`",
            ),
            (
                lambda c: c["annotations"]["annotations"][1]["answers"][1].update(answer_id=1),
                "annotations.json: entry 2 of annotations: question 2 has two answers with one answer_id; expected an",
            ),
            (
                lambda c: c["annotations"]["annotations"].append(c["annotations"]["annotations"][0]),
                "annotations.json: entry 11 of annotations: question 1 is annotated a second time; expected one",
            ),
            (
                lambda c: c["questions"]["questions"].pop(4),
                "annotations.json: entry 5 of annotations: question 5 is not in ",
            ),
            (
                lambda c: c["annotations"]["annotations"].pop(4),
                "annotations.json: no annotation for 1 of 10 questions, such as 5; give the annotations of the split",
            ),
            (
                lambda c: (c["questions"]["questions"].clear(), c["annotations"]["annotations"].clear()),
                "annotations.json: no annotation; expected VQA's {",
            ),
            (
                lambda c: c.update(predictions={"1": "yes"}),
                "predictions.json: broken JSON at byte 0: expected a JSON array of records, found '{'",
            ),
            (
                lambda c: c["predictions"][1].update(answer=2),
                "predictions.json: entry 2: Expected `str`, got `int` - at `$.answer`",
            ),
            (
                lambda c: c["predictions"][1].update(question_id="2"),
                "predictions.json: entry 2: question '2' is not among the questions; give the results of the same",
            ),
            (
                lambda c: c["predictions"].append({"question_id": 1, "answer": "yes"}),
                "predictions.json: entry 11: question 1 is answered a second time; expected one answer for each",
            ),
            (
                lambda c: c["predictions"].pop(0),
                "predictions.json: no answer for 1 of 10 questions, such as 1; answer them too",
            ),
        ],
    )
    def test_what_does_not_fit_is_one_line_and_exit_code_2(self, score: Score, vqa: Files, change, line: str):
        code, lines, error = score(*vqa.spoil(change))
        assert (code, lines, error.count("\n")) == (2, [], 1), error
        assert error.startswith("duoflow: ")
        assert line in error


class TestNlvr2:
    @pytest.mark.parametrize(
        ("name", "old", "new", "line"),
        [
            ("questions", '"identifier": "dev-0-1-0"', '"id": 1', "questions.json: line 2: Object missing required"),
            ("questions", '"False"', '"Maybe"', "questions.json: line 2: label 'Maybe'; expected True or False"),
            ("questions", '"False"', "false", "questions.json: line 2: Expected `str`, got `bool`"),
            ("questions", "dev-0-1-0", "dev-0", "questions.json: line 2: identifier 'dev-0'; expected split-set-pair-"),
            ("questions", "dev-0-1-0", "dev-0-0-0", "questions.json: line 2: 'dev-0-0-0' is there twice; expected"),
            ("questions", '{"identifier": "dev-0-1-0"', "{", "questions.json: line 2: JSON is malformed: "),
            ("predictions", "dev-0-1-0,False", "dev-0-1-0", "predictions.json: line 2: 'dev-0-1-0' has no comma; exp"),
            ("predictions", "dev-0-1-0,False", "dev-0-1-0, False", "line 2: prediction ' False'; expected True or"),
            ("predictions", "dev-0-1-0,False", "dev-0-1-0,no", "line 2: prediction 'no'; expected True or False"),
            ("predictions", "dev-0-1-0", "dev-0-0-0", "line 2: 'dev-0-0-0' is predicted a second time; expected one"),
            (
                "predictions",
                "dev-0-1-0,False\n",
                "",
                "predictions.json: no prediction for 1 of 7 pairs, such as 'dev-0-1-0'; predict them too",
            ),
        ],
    )
    def test_what_does_not_fit_is_one_line_and_exit_code_2(self, score: Score, nlvr2: Files, name, old, new, line):
        assert old in nlvr2.contents[name]
        nlvr2.contents[name] = nlvr2.contents[name].replace(old, new, 1)
        code, lines, error = score(*nlvr2.words())
        assert (code, lines, error.count("\n")) == (2, [], 1), error
        assert line in error

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            ("questions", "", "questions.json: no labelled pair; expected NLVR2's"),
            ("questions", "[]", "questions.json: no labelled pair; expected NLVR2's"),
            (
                "questions",
                '[{"identifier": 1}]',
                "questions.json: entry 1: Expected `str`, got `int` - at `$.identifier`",
            ),
            ("questions", '{"info": ' + 99999 * "[", "questions.json: line 1: nested too deep; expected NLVR2's {"),
            ("questions", '{"questions": []}', "questions.json: line 1: Object missing required field `identifier`"),
            ("predictions", b"dev-0-0-0,True\n\xff,True\n", "predictions.json: line 2: not UTF-8 text: "),
        ],
    )
    def test_a_file_of_another_kind_is_one_line(self, score: Score, nlvr2: Files, name, content, line: str):
        nlvr2.contents[name] = content
        code, _, error = score(*nlvr2.words())
        assert (code, error.count("\n")) == (2, 1), error
        assert line in error


class TestSnliVe:
    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (
                lambda c: c.update(questions=c["questions"].replace('"neutral"', '"-"')),
                "questions.json: line 2: label '-'; expected entailment, neutral, contradiction",
            ),
            (
                lambda c: c.update(questions=c["questions"].replace("gold_label", "gold")),
                "questions.json: line 1: neither gold_label nor label; expected SNLI-VE's {",
            ),
            (
                lambda c: c.update(questions=c["questions"].replace("r1n", "r1e")),
                "questions.json: line 2: pair '1.jpg#0r1e' is there twice; expected each pair once",
            ),
            (lambda c: c.update(questions="x\n"), "questions.json: line 1: JSON is malformed: invalid character"),
            (lambda c: c.update(questions="\n"), "questions.json: no labelled pair; expected SNLI-VE's {"),
            (
                lambda c: c["predictions"][1].update(prediction="Neutral"),
                "predictions.json: entry 2: prediction 'Neutral'; expected entailment, neutral, contradiction",
            ),
            (
                lambda c: c["predictions"][1].pop("prediction"),
                "predictions.json: entry 2: Object missing required field `prediction`",
            ),
            (
                lambda c: c["predictions"][1].pop("pairID"),
                "predictions.json: entry 2: neither pairID nor question_id; expected {",
            ),
            (
                lambda c: c["predictions"][1].update(pairID="2.jpg#0r1e"),
                "predictions.json: entry 2: pair '2.jpg#0r1e' is not among the pairs; give the predictions of the same",
            ),
            (
                lambda c: c["predictions"].append(c["predictions"][0]),
                "predictions.json: entry 4: pair '1.jpg#0r1e' is predicted a second time; expected one prediction",
            ),
            (
                lambda c: c["predictions"].pop(),
                "predictions.json: no prediction for 1 of 3 pairs, such as '1.jpg#0r1c'; predict them too",
            ),
        ],
    )
    def test_what_does_not_fit_is_one_line_and_exit_code_2(self, score: Score, snli_ve: Files, change, line: str):
        code, lines, error = score(*snli_ve.spoil(change))
        assert (code, lines, error.count("\n")) == (2, [], 1), error
        assert line in error
