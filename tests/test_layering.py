"""Imports point down one staircase, launch needs the standard library alone, and one file knows deepspeed."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEES = {
    "shards": {"shards"},
    "model": {"shards", "model"},
    "trainer": {"shards", "model", "trainer", "launch"},
    "launch": {"launch"},
}


def imports_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, inside functions too; a relative import has the name ""."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "" if node.level else (node.module or "").partition(".")[0]


def imports_under(package: str) -> list[tuple[str, int, str]]:
    """(file, line, top-level package) of every import of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no files"
    return [
        (str(file.relative_to(ROOT)), line, name)
        for file in files
        for line, name in imports_in(file.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("package", SEES)
def test_imports_point_down(package: str):
    for file, line, name in imports_under(package):
        assert name not in SEES.keys() - SEES[package], f"{file}:{line} imports {name}; {package}/ sees {SEES[package]}"


@pytest.mark.parametrize("package", SEES)
def test_imports_are_absolute(package: str):
    assert [(file, line) for file, line, name in imports_under(package) if name == ""] == []


def test_launch_needs_the_standard_library_alone():
    for file, line, name in imports_under("launch"):
        assert name in sys.stdlib_module_names | {"launch"}, f"{file}:{line} imports {name}"


def test_only_the_engine_imports_deepspeed():
    importers = {file for package in SEES for file, _, name in imports_under(package) if name == "deepspeed"}
    assert importers == {"trainer/engine.py"}


def test_the_scanner_sees_imports_of_every_form():
    source = "import a.b as c, d\nfrom e.f import g\ndef h():\n    import i\n    from . import j\n"
    assert [name for _, name in imports_in(source)] == ["a", "d", "e", "i", ""]
