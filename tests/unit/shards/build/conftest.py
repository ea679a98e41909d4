"""What most tests of a build begin with."""

from pathlib import Path

import pytest

from tests.corpora import Corpus, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", num_images=9, questions_per_image=4)
