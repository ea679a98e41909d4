"""Where another distribution has one of the names behind `duoflow`, importing it says so in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

import duoflow
from duoflow.names import MARK, PACKAGES

REPOSITORY = Path(duoflow.__file__).resolve().parents[1]


def imported(first: Path, statement: str = "import duoflow") -> subprocess.CompletedProcess[str]:
    """A Python that looks for modules in `first` and then in the repository."""
    script = f"import sys; sys.path[:0] = [{str(first)!r}, {str(REPOSITORY)!r}]; {statement}"
    return subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)


def last_line(told: subprocess.CompletedProcess[str]) -> str:
    return told.stderr.strip().splitlines()[-1]


def test_every_package_is_marked():
    for name in PACKAGES:
        assert MARK in (REPOSITORY / name / "__init__.py").read_text()


def test_with_its_own_packages_it_imports(tmp_path: Path):
    assert imported(tmp_path).returncode == 0


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("form", ["file", "package", "namespace"])
def test_a_module_of_somebody_else_is_named(tmp_path: Path, name: str, form: str):
    (tmp_path / name).mkdir()
    place = tmp_path / name
    if form == "file":
        (tmp_path / name).rmdir()
        place = tmp_path / f"{name}.py"
        place.write_text("")
    elif form == "package":
        place = place / "__init__.py"
        place.write_text("")
    told = imported(tmp_path)
    if form == "namespace":  # Python prefers a regular package behind it
        assert told.returncode == 0
        return
    assert told.returncode != 0
    line = last_line(told)
    assert line.startswith(f"ImportError: duoflow: the name {name} leads to {place}, which is not DuoFlow's")
    assert "environment of its own" in line


def test_a_module_that_is_imported_already_is_named(tmp_path: Path):
    (tmp_path / "model.py").write_text("")
    told = imported(tmp_path, f"import model; sys.path.remove({str(tmp_path)!r}); import duoflow")
    assert f"the name model leads to {tmp_path / 'model.py'}" in last_line(told)


def test_the_distribution_that_owns_it_is_named(tmp_path: Path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("")
    info = tmp_path / "other_trainer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-trainer\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("trainer\n")
    (info / "RECORD").write_text("trainer/__init__.py,,\n")
    assert "(of other-trainer), which is not DuoFlow's" in last_line(imported(tmp_path))


def test_a_package_that_was_written_over_is_named(tmp_path: Path):
    for name in ("duoflow", *PACKAGES):
        (tmp_path / name).mkdir()
        source = REPOSITORY / name / "__init__.py"
        (tmp_path / name / "__init__.py").write_text(source.read_text())
    (tmp_path / "duoflow" / "names.py").write_text((REPOSITORY / "duoflow" / "names.py").read_text())
    assert imported(tmp_path).returncode == 0
    (tmp_path / "launch" / "__init__.py").write_text('"""Somebody else\'s."""\n')
    assert f"the name launch leads to {tmp_path / 'launch' / '__init__.py'}" in last_line(imported(tmp_path))
    (tmp_path / "launch" / "__init__.py").unlink()
    (tmp_path / "launch").rmdir()
