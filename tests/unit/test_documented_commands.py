"""Every command that README and docs show is one that can be typed: of `duoflow`, of `python -m`, of `make`."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import cli
from trainer.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ds_configs/README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("", "bash")
FOLLOWED = {
    "test_own_data.py": ("README", "index", "own_data"),
    "test_followed_pages.py": ("gqa", "order", "checkpoints", "export", "report", "watching", "troubleshooting"),
    "test_followed_scores.py": ("data", "scores"),
    "test_followed_tasks.py": ("tasks",),
    "test_followed_documents.py": ("documents", "retrieval", "vlm"),
    "test_followed_recipes.py": ("results", "recipes", "fusion", "features", "heatmap"),
    "test_followed_choices.py": ("performance", "scaling", "references", "optim", "cockpit", "remote"),
}
"""File of tests/integration -> pages whose commands it runs from their text, or names with a reason."""
ELSEWHERE = {
    "commands": "every example of a help screen: tests/integration/test_own_data.py",
    "cluster": "hosts, Slurm and Kubernetes: tests/multinode, tests/unit/launch",
    "serve": "answers until Ctrl-C: tests/unit/trainer/commands/test_serve_and_report.py",
}
"""Pages whose commands need more than a directory -> where they are run."""
_FENCED = re.compile(r"^([ ]*)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_MODULE = re.compile(r"python3? -m ((?:benchmarks|duoflow|launch|shards|trainer)[\w.]*)((?: [^\n`#|]*)?)")


def fenced(text: str, *languages: str) -> Iterator[str]:
    """The blocks of a page in these languages, without the indent of a list that they stand in."""
    for indent, language, block in _FENCED.findall(text):
        if language in languages:
            yield re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words behind `duoflow` of each command in the fenced blocks of a page."""
    for block in fenced(text, *SHELL):
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


def test_every_page_with_commands_is_followed_or_says_where_they_run():
    followed = [page for pages in FOLLOWED.values() for page in pages]
    shown = {page.stem for page in PAGES if any(commands(page.read_text(encoding="utf-8")))}
    assert shown == {*followed, *ELSEWHERE}
    assert len(followed) == len(set(followed))
    for file, pages in FOLLOWED.items():
        text = (ROOT / "tests" / "integration" / file).read_text(encoding="utf-8")
        assert all(f'"{page}"' in text for page in pages), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_command_changes_of_a_recipe_of_ours_resolves(page: Path):
    for verb, *words in commands(page.read_text(encoding="utf-8")):
        recipes = [word for word in words if re.fullmatch(r"recipes/\w+\.yaml", word)]
        assert all((ROOT / recipe).is_file() for recipe in recipes), words
        if verb == "train" and recipes:
            changes = [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
            assert load_config(ROOT / recipes[0], changes), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_targets_are_there_with_the_options_that_are_shown(page: Path):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for module, words in _MODULE.findall(text):
        found = importlib.util.find_spec(module.rstrip("."))
        assert found, module
        source = Path(found.origin).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r"--[a-z][\w-]*", words)), (module, words)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE)) <= targets
    extras = set(re.findall(r"duoflow\[([\w,]+)\]", text))
    known = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert all(f'"{extra}": [' in known for extra in ",".join(extras).split(",") if extra)
