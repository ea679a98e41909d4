"""The file of ranked pages: what it may be, and what is said of another."""

import json
from pathlib import Path

import pytest

from shards.errors import ConfigError
from shards.read.retrieved import read_retrieved


def test_the_best_pages_are_kept(tmp_path: Path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps({"1": ["a", "b", "c"], "2": ["d"]}))
    assert read_retrieved(str(path), 2) == {"1": ("a", "b"), "2": ("d",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory; `duoflow evaluate`"),
        ("[1]", "expected the names of pages by question id"),
        ('{"1": [2]}', "expected the names of pages by question id"),
        ('{"1": []}', "question 1 has no page; expected at least one for each question"),
    ],
)
def test_another_file_is_one_line(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "val.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_retrieved(str(path), 3)
    assert str(error.value).startswith(f"data.retrieved: {path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
