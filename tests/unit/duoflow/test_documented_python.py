"""Every Python block of README and the docs runs, from the text itself, in the order of its page."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if "import duoflow" in "".join(_BLOCK.findall(page.read_text(encoding="utf-8")))]


@pytest.fixture
def desk(run: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the pages talk of: an export, photos, tables."""
    desk = tmp_path / "desk"
    desk.mkdir()
    shutil.copytree(run / "export", desk / "exported")
    (desk / "photos").mkdir()
    for source, name in ((photos[0], "photo.jpg"), (photos[1], "other.jpg")):
        shutil.copy(source, desk / name)
        shutil.copy(source, desk / "photos" / name)
    lines = ["photo.jpg,Is there a red square?", "other.jpg,Is there a red square?", "other.jpg,What color is it?"]
    (desk / "asked.csv").write_text("\n".join(["image,question", *lines]) + "\n")
    (desk / "rows.csv").write_text("\n".join(["image,question,answer", *(f"{line},yes" for line in lines)]) + "\n")
    monkeypatch.chdir(desk)
    return desk


def test_there_are_pages():
    assert {"README.md", "python.md"} <= {page.name for page in pages()}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, desk: Path):
    before, names = {path.name for path in desk.iterdir()}, {}
    for number, block in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8"))):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    made = {path.name for path in desk.iterdir()} - before
    assert any(name.endswith(".png") for name in made)
    if page.name == "python.md":
        assert made >= {"looked.png", "answered.csv", "shards"}
        assert (desk / "answered.csv").read_text().count("\n") == 4
        assert names["tokens"].shape == (2, names["length"], names["width"])
