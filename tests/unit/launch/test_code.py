"""Digests tell sources apart by content and by name, and see all of ours."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import launch
from launch.code import PACKAGES, digests_below, in_one, source_digests


def test_sources_differ_by_content_and_by_name(tmp_path: Path):
    home = tmp_path / "home"
    (home / "room").mkdir(parents=True)
    (home / "room" / "a.py").write_text("one")
    first = in_one(digests_below(home))
    assert in_one(digests_below(shutil.copytree(home, tmp_path / "copy"))) == first
    (home / "room" / "a.py").write_text("two")
    second = in_one(digests_below(home))
    (home / "room" / "a.py").rename(home / "room" / "b.py")
    third = in_one(digests_below(home))
    assert len({first, second, third}) == 3
    (home / "room" / "__pycache__").mkdir()
    (home / "room" / "__pycache__" / "b.pyc").write_text("compiled")
    assert in_one(digests_below(home)) == third


def test_every_package_is_looked_at_where_it_is_imported_from():
    found = source_digests()
    for package in PACKAGES:
        (home,) = importlib.import_module(package).__path__
        files = {f"{package}/{path.relative_to(home).as_posix()}" for path in Path(home).rglob("*.py")}
        assert files == {name for name in found if name.startswith(f"{package}/")}


def test_a_changed_line_and_an_added_file_of_ours_show(tmp_path: Path):
    shutil.copytree(Path(launch.__file__).parent, tmp_path / "launch")
    (tmp_path / "launch" / "processes" / "ranks.py").write_text("# another version\n")
    (tmp_path / "launch" / "more.py").write_text("")
    code = "import json; from launch.code import source_digests; print(json.dumps(source_digests()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    there, here = json.loads(done.stdout), source_digests()
    differing = {name for name in there if name.startswith("launch/") and there[name] != here.get(name)}
    assert differing == {"launch/processes/ranks.py", "launch/more.py"}
