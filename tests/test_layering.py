"""Imports point down: one staircase of packages, the floors inside each, and one file that knows deepspeed."""

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
    "duoflow": {"shards", "model", "trainer", "launch", "duoflow"},
}
FLOORS = {
    "trainer": (
        ("cli", "train", "command_reference"),
        ("commands",),
        ("inference", "doctor", "bench", "own"),
        ("training",),
        ("export",),
        ("build", "features"),
        ("reporting", "run_directory"),
        ("config",),
        ("tasks",),
        ("engine", "scoring", "columns", "command_line", "exit_codes", "version"),
    ),
    "model": (
        ("build", "vlm", "retrieval", "reader", "cost"),
        ("pnp",),
        ("frozen_streams",),
        ("fusion_objective", "source", "parts", "layers"),
        ("looking",),
        ("towers",),
        ("fusion", "efficient_sam"),
        (
            "objective",
            "config",
            "references",
            "rows",
            "losses",
            "fit",
            "pixels",
            "untrained",
            "precision",
            "checkpointing",
        ),
    ),
    "shards": (
        ("read", "build"),
        ("own",),
        ("tasks", "annotations", "scenes"),
        ("format", "plan", "remote", "micro_batches"),
        ("config", "config_base", "errors", "progress", "atomic", "lower_case", "vqa_text"),
    ),
    "launch": (
        ("node", "pod"),
        ("hosts", "render"),
        ("processes", "probe"),
        ("plan", "network", "code"),
    ),
    "duoflow": (
        ("__main__",),
        ("model", "verbs"),
        ("answers", "overrides", "names"),
    ),
}
"""The rooms of each package (folders, and files that are rooms by themselves), top floor first."""


def imports_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, inside functions too; a relative import has the name "".

    What `from a import b` names is given as `a.b`: b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, "" if node.level else f"{node.module}.{alias.name}") for alias in node.names)


def imports_under(package: str) -> list[tuple[str, int, str]]:
    """(file, line, module) of every import of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no files"
    return [
        (str(file.relative_to(ROOT)), line, name)
        for file in files
        for line, name in imports_in(file.read_text(encoding="utf-8"))
    ]


def top(name: str) -> str:
    return name.partition(".")[0]


def rooms() -> Iterator[tuple[str, str]]:
    for package in FLOORS:
        for path in sorted((ROOT / package).iterdir()):
            if (path.is_dir() and any(path.glob("*.py"))) or (path.suffix == ".py" and path.stem != "__init__"):
                yield package, path.stem


@pytest.mark.parametrize("package", SEES)
def test_imports_point_down(package: str):
    for file, line, name in imports_under(package):
        seen = SEES[package]
        assert top(name) not in SEES.keys() - seen, f"{file}:{line} imports {name}; {package}/ sees {sorted(seen)}"


@pytest.mark.parametrize(("package", "room"), list(rooms()))
def test_every_room_is_on_a_floor(package: str, room: str):
    assert sum(room in floor for floor in FLOORS[package]) == 1, f"{package}/{room}: on which floor is it?"


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_climbs_inside_a_package(package: str):
    floor_of = {room: number for number, floor in enumerate(FLOORS[package]) for room in floor}
    for file, line, name in imports_under(package):
        path = file.split("/")
        if top(name) != package or (len(path) == 2 and path[1] == "__init__.py"):
            continue
        here, there = Path(path[1]).stem, name.split(".")[1]
        assert floor_of[there] >= floor_of[here], f"{file}:{line} climbs from {here} to {there} (imports {name})"


@pytest.mark.parametrize("package", SEES)
def test_no_circle_of_files(package: str):
    """Import by import: a file whose imports are all resolved is taken away, until none is left."""
    files = {str(file.relative_to(ROOT)) for file in (ROOT / package).rglob("*.py")}
    needs: dict[str, set[str]] = {file: set() for file in files}
    for file, _, name in imports_under(package):
        for module in (name, name.rpartition(".")[0]):
            path = module.replace(".", "/") + ".py"
            needs[file] |= {path} & files - {file}
    while free := {file for file, others in needs.items() if not others}:
        needs = {file: others - free for file, others in needs.items() if file not in free}
    assert not needs, f"files that import each other in a circle: {sorted(needs)}"


@pytest.mark.parametrize("package", SEES)
def test_imports_are_absolute(package: str):
    assert [(file, line) for file, line, name in imports_under(package) if name == ""] == []


def test_launch_needs_the_standard_library_alone():
    for file, line, name in imports_under("launch"):
        assert top(name) in sys.stdlib_module_names | {"launch"}, f"{file}:{line} imports {name}"


def test_only_the_engine_imports_deepspeed():
    importers = {file for package in SEES for file, _, name in imports_under(package) if top(name) == "deepspeed"}
    assert importers == {"trainer/engine/engine.py"}


def test_the_scanner_sees_imports_of_every_form():
    source = "import a.b as c, d\nfrom e.f import g\ndef h():\n    import i\n    from . import j\n"
    assert [name for _, name in imports_in(source)] == ["a.b", "d", "e.f.g", "i", ""]
