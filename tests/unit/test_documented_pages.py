"""What pages say of links, keys, metrics, messages and calls is so: held against the sources, not against a copy."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from model.config import LossConfig
from model.parts import PARTS
from shards.tasks import TASKS
from tests.unit.test_documented_commands import PAGES, ROOT, fenced
from trainer.config import RunConfig
from trainer.config.faults import leaf_keys
from trainer.reporting.gauge import Limits
from trainer.scoring.baselines import MAJORITY, QUESTION_ONLY
from trainer.tasks import task_named
from trainer.tasks.parts import part_metrics

DOCS = ROOT / "docs"
PACKAGES = ("duoflow", "launch", "model", "shards", "trainer")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_RECORDED = re.compile(r"(optim|speed|progress|memory)/\w+")
_HOLE = re.compile(r"%[-+ 0#,]*\d*(?:\.\d+)?[sdfgrx]|\{[^{}]*\}")
LEAST_PIECE, LEAST_COVERED = 12, 0.4
"""Of a quoted message: characters in a row, and its part in all, that stand in the sources; the rest is names and
numbers."""


@cache
def sources() -> dict[Path, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


# Links


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path):
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", path.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def test_the_site_has_every_page_once():
    def leaves(entries: list) -> Iterator[str]:
        for entry in entries:
            (value,) = entry.values()
            yield from [value] if isinstance(value, str) else leaves(value)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(leaves(nav)) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path):
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    build(config.load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    built = list(tmp_path.glob("*.html"))
    assert {file.stem for file in built} >= {file.stem for file in DOCS.glob("*.md")}
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:)?//|<link[^>]*rel=\"stylesheet\"[^>]*https?://")
    for file in built:
        assert not loaded.search(file.read_text(encoding="utf-8")), file.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\"?https?:|@import[^;]*https?:", sheet.read_text(encoding="utf-8")), sheet.name


# Blocks


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_compile_and_import_what_there_is(path: Path):
    """Those of `import duoflow` are run, too: tests/unit/duoflow/test_documented_python.py."""
    for block in fenced(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(name.name) for name in node.names), block
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), block


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_yaml_blocks_have_keys_of_a_recipe(path: Path):
    def leaves(value: dict, place: str = "") -> Iterator[str]:
        for key, inner in value.items():
            yield from leaves(inner, f"{place}{key}.") if isinstance(inner, dict) else [f"{place}{key}"]

    known = tuple(leaf_keys(RunConfig))
    for block in fenced(path.read_text(encoding="utf-8"), "yaml"):
        for key in leaves(yaml.safe_load(block)):
            assert key in known, key


# Recipes, metrics


def test_the_page_of_recipes_has_each():
    named = set(re.findall(r"`(\w+)`", page("recipes.md")))
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} <= named


def recorded_names() -> set[str]:
    """Every name that a run or an evaluation can record but those with a number in them."""
    everything = LossConfig(**dict.fromkeys(PARTS, 1.0))
    names = set(part_metrics(PARTS)) | {"train/loss", "val/loss", "val/count"}
    names |= {f"val/{name}" for task in TASKS for name in task_named(task).metrics(everything)}
    names |= {f"epoch/{part}_loss" for part in PARTS} | {"epoch/loss"}
    names |= set(Limits("compute", 1.0, 0.0, 0.0, 0.0, None).as_metrics())
    names |= {f"val/{name}" for name in (MAJORITY, QUESTION_ONLY, "answer_ceiling")}
    for tree in sources().values():
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        names |= {text for text in strings if isinstance(text, str) and _RECORDED.fullmatch(text)}
    return names


def test_the_page_of_metrics_has_every_name():
    missing = recorded_names() - set(re.findall(r"`([\w/@]+)`", page("metrics.md")))
    assert not missing, sorted(missing)


def test_the_page_of_metrics_has_no_name_that_nobody_records():
    said = set(re.findall(r"`((?:train|val|epoch|optim|speed|progress|memory)/[\w/@]+)`", page("metrics.md")))
    with_a_number = {"val/steps/N", "val/length/N", "val/binary/count"}
    keys = {name for name in said if name.replace("/", ".") in leaf_keys(RunConfig)}
    assert not said - recorded_names() - with_a_number - keys


# Messages


@cache
def templates() -> tuple[tuple[str, ...], ...]:
    """The texts of the sources that a message can be made of, each as what stands between its holes."""
    found = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.replace("%%", "%")
            else:
                continue
            pieces = tuple(piece for piece in _HOLE.split(text) if piece.strip())
            if any(len(piece) >= LEAST_PIECE for piece in pieces):
                found.add(pieces)
    return tuple(found)


def covered(message: str) -> float:
    """The part of a message that templates of the sources give, each whole and in its order."""
    seen = [False] * len(message)
    for pieces in templates():
        places, start = [], 0
        for piece in pieces:
            at = message.find(piece, start)
            if at < 0:
                break
            places.append((at, start := at + len(piece)))
        else:
            for first, last in places:
                seen[first:last] = [True] * (last - first)
    return sum(seen) / len(message)


def quoted() -> list[str]:
    """The lines of all blocks that are marked as what the program says."""
    blocks = (block for path in PAGES for block in fenced(path.read_text(encoding="utf-8"), "text"))
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("message", quoted())
def test_what_is_quoted_is_what_the_program_says(message: str):
    assert covered(message) >= LEAST_COVERED, message


def test_a_message_that_nobody_says_is_found():
    assert len(quoted()) > 20
    assert covered("the run has ended because of a mistake in the file, please try it again") < LEAST_COVERED
    (said,) = [line for line in quoted() if "negatives have weight 0" in line]
    assert covered(said) >= LEAST_COVERED
    assert covered(" ".join(reversed(said.split()))) < LEAST_COVERED


# Security


def test_no_repository_runs_its_code_and_nothing_is_unpickled():
    """What docs/security.md says: `trust_remote_code` is off, torch loads weights only, and no file is a pickle."""
    for path, tree in sources().items():
        where = str(path.relative_to(ROOT))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if re.fullmatch(r"Auto\w+\.from_pretrained", called):
                assert given.get("trust_remote_code") == "False", f"{where}:{node.lineno}"
            if called == "torch.load":
                assert given.get("weights_only") == "True", f"{where}:{node.lineno}"
            assert called not in ("pickle.load", "pickle.loads", "yaml.unsafe_load"), f"{where}:{node.lineno}"
            assert given.get("allow_pickle") != "True", f"{where}:{node.lineno}"
