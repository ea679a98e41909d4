"""Columns are told by their names, else by what stands in them; what cannot be told is asked for in one line."""

import json
from pathlib import Path

import pytest

from shards.errors import ConfigError, DataError
from shards.own.table import Table, read_table

ROWS = [("a.jpg", "Is it red?", "yes"), ("b.jpg", "What is it?", "a cup, blue")]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def triples(table: Table) -> list[tuple[str, str, str | None]]:
    return [(row.image, row.question, row.answer) for row in table.rows]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", 'image,question,answer\na.jpg,Is it red?,yes\nb.jpg,What is it?,"a cup, blue"\n'),
        ("r.csv", "Picture;Frage;Answer\na.jpg;Is it red?;yes\nb.jpg;What is it?;a cup, blue\n"),
        ("r.tsv", "file name\tq\tlabel\na.jpg\tIs it red?\tyes\nb.jpg\tWhat is it?\ta cup, blue\n"),
        ("r.csv", "\ufeffImage-Path|Query|GT\na.jpg|Is it red?|yes\n\nb.jpg|What is it?|a cup, blue\n"),
        ("r.csv", "a.jpg\tIs it red?\tyes\nb.jpg\tWhat is it?\ta cup, blue\n"),
        ("r.jsonl", "\n".join(json.dumps(dict(zip(("img", "text", "a"), row, strict=True))) for row in ROWS)),
        ("r.json", json.dumps([dict(zip(("photo", "prompt", "target"), row, strict=True)) for row in ROWS], indent=1)),
    ],
)
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, name: str, text: str):
    assert triples(read_table(written(tmp_path / name, text))) == ROWS


def test_columns_without_telling_names_are_guessed_and_said_to_be(tmp_path: Path):
    table = read_table(written(tmp_path / "r.csv", "x,y,z\nIs it red?,a.PNG,yes\n"))
    assert table.columns == {"image": "y", "question": "x", "answer": "z"}
    assert table.guessed == {"image", "question", "answer"}


def test_a_column_that_is_named_wins_over_one_with_a_telling_name(tmp_path: Path):
    path = written(tmp_path / "r.csv", "image,question,answer,human\na.jpg,Is it red?,yes,no\n")
    assert triples(read_table(path, {"answer": "human"})) == [("a.jpg", "Is it red?", "no")]


def test_answers_that_are_no_texts_become_some(tmp_path: Path):
    rows = [
        {"image": 7, "question": "How many?", "answer": 3},
        {"image": 7, "question": "Red?", "answer": True},
        {"image": 7, "question": "What?", "answer": ["cup", "mug", "mug"]},
        {"image": 7, "question": "Which?", "answer": None},
    ]
    table = read_table(written(tmp_path / "r.jsonl", "\n".join(map(json.dumps, rows))))
    assert [row.answer for row in table.rows] == ["3", "yes", "mug", None]
    assert {row.image for row in table.rows} == {"7"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "image,text1,text2\na.jpg,red,cup\n",
            "r.csv: no column can be told to hold the question; it has image, text1",
        ),
        ("image,question,answer\na.jpg,Is it?\n", "r.csv: line 2: 2 cells; expected 3, as in the first line"),
        ("image,image,answer\n", "r.csv: line 1: two columns of one name"),
        ('image,question,answer\na.jpg,"Is it?,yes\n', "r.csv: line 2: not a row of cells"),
        ("", "r.csv: has no rows"),
        ('{"image": "a.jpg"}\n{"image"', "r.csv: line 2: not JSON"),
        ('{\n"image": "a.jpg"}', "r.csv: line 1: not JSON: .*; an object over several lines is no row"),
        ("[1]", "r.csv: entry 1: expected an object with image, question and answer, got 1"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path: Path, text: str, line: str):
    with pytest.raises((ConfigError, DataError), match=line) as caught:
        read_table(written(tmp_path / "r.csv", text))
    assert "\n" not in str(caught.value)


def test_another_encoding_is_named(tmp_path: Path):
    (tmp_path / "r.csv").write_bytes("image,question,answer\nä.jpg,Is it?,yes\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 at byte 22; save it again as UTF-8"):
        read_table(tmp_path / "r.csv")


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path):
    path = written(tmp_path / "r.csv", "image,question,answer\na.jpg,Is it?,yes\n")
    with pytest.raises(ConfigError, match=r"--columns answer=human: .* has no such column; it has image, question"):
        read_table(path, {"answer": "human"})
