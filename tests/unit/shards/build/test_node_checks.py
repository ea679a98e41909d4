"""Whether a node would do a part as this one does it."""

import shutil
import sys
from pathlib import Path

import pytest

from shards.build.media import ImageDirectory
from shards.build.node_code import LIBRARIES, PACKAGE, code_facts
from shards.build.node_sight import arrived, look, sight_of
from shards.build.packing import Source
from tests.corpora import Corpus

ROOT = Path(__file__).parents[4]


@pytest.fixture
def source(corpus: Corpus) -> Source:
    directory = ImageDirectory(corpus.images, ("", ".jpg", ".png", ".webp"))
    return Source("01000", (directory.origin("01000"),))


def test_code_is_known_by_every_byte_and_not_by_its_place(tmp_path, monkeypatch):
    here = code_facts(PACKAGE, LIBRARIES)
    assert "not installed" not in here.values()
    copy = tmp_path / "twin"
    shutil.copytree(ROOT / PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert code_facts("twin", LIBRARIES) == here
    (copy / "format" / "images.py").rename(copy / "images.py")
    assert code_facts("twin", LIBRARIES)["duoflow"] != here["duoflow"]


def test_what_a_node_lacks_is_said():
    facts = code_facts("no_such_package", ["no-such-library"])
    assert (facts["duoflow"], facts["no-such-library"]) == ("not installed", "not installed")


def test_a_node_that_sees_the_same_is_taken_and_leaves_nothing(source, tmp_path):
    sight = sight_of(source, tmp_path)
    before = sorted(tmp_path.iterdir())
    assert arrived(sight, look(sight)) is None
    assert sorted(tmp_path.iterdir()) == before
    assert arrived(sight_of(source, None), look(sight_of(source, None))) is None
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_node_does_not_see_is_said(source, corpus, tmp_path):
    sight = sight_of(source, tmp_path)
    assert "No such file" in arrived(sight, look(sight._replace(directory=tmp_path / "nowhere")))
    assert "another directory of this name" in arrived(sight, look(sight._replace(token="of another build")))
    seen = look(sight)
    (tmp_path / seen.reply).unlink()
    assert "what it wrote there is not seen here" in arrived(sight, seen)
    (image,) = corpus.images.glob("01000.*")
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    assert "image '01000': another file than here" in arrived(sight, look(sight))
    image.unlink()
    assert "01000" in arrived(sight, look(sight))
