"""The wheel, installed in an environment of its own, runs what README shows."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from duoflow.names import PACKAGES

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_wheel_in_a_bare_environment_runs_the_lines_of_readme(run: Path, photos: list[Path], tmp_path: Path):
    source = tmp_path / "source"  # setuptools builds beside the sources
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("duoflow", *PACKAGES, "ds_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("duoflow-*.whl")
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # What it depends on is taken from here, behind its own packages, and no editable install of this checkout with it.
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "dependencies.py").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    (site / "dependencies.pth").write_text("import dependencies\n")
    desk = tmp_path / "desk"
    shutil.copytree(run / "export", desk / "exported")
    shutil.copy(photos[0], desk / "photo.jpg")
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = f"{block[1]}\nprint(duoflow.__file__)\n"
    told = subprocess.run([python, "-c", script], cwd=desk, env=alone, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip().splitlines()[-1] == str(site / "duoflow" / "__init__.py")
    assert (desk / "out.png").is_file()
    assert (site / "duoflow" / "py.typed").is_file()
    assert (site / "ds_configs" / "zero1.json").is_file()
    command = [home / "bin" / "duoflow", "answer", "exported", "--image", "photo.jpg", "--question", "Is it red?"]
    said = subprocess.run(command, cwd=desk, env=alone, capture_output=True, text=True, check=False)
    assert (said.returncode, "%)" in said.stdout) == (0, True), said.stderr
