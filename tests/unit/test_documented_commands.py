"""Every `duoflow` command that README and docs show is one that the command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words behind `duoflow` of each command in the fenced blocks of a page."""
    for block in _FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("; "):
                if re.match(r"\s*duoflow [a-z]", part):
                    words = shlex.split(part, comments=True)
                    yield words[1 : words.index("|") if "|" in words else None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_line_takes_every_command_of_the_page(page: Path):
    for words in commands(page.read_text(encoding="utf-8")):
        arguments = cli._parse([word for word in words if word != "..."])
        assert callable(arguments.handler), words


def test_there_are_commands_to_take():
    shown = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
    assert len(shown) > 60
    assert {words[0] for words in shown} >= {
        "train",
        "shards",
        "evaluate",
        "launch",
        "attach",
        "stop",
        "status",
        "doctor",
    }
