"""hf:// against a server that speaks the hub's protocol: what is read from it, and what its refusals lead to.

In processes of their own: the library reads HF_ENDPOINT when it is imported.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.config import CacheConfig
from shards.format.index import index_digest
from shards.plan import Order
from shards.read.micro_batches import Split, TrainingBatches, alone
from tests.corpora import build_corpus
from tests.hub import hub
from tests.unit.shards.read.test_loader import SIZE, TEXTS, all_batches

pytest.importorskip("huggingface_hub", reason="hf:// needs huggingface_hub: pip install 'duoflow[hf]'")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = build_corpus(tmp_path_factory.mktemp("hub"), num_images=9, questions_per_image=5)
    return directory


def url_of(shards: Path, name: str = "team/gqa") -> str:
    return f"hf://datasets/{name}/{shards.name}"


def everything_read(place: str, cache: Path) -> str:
    """A digest of the index and of all micro-batches of an epoch."""
    order = Order(seed=5, questions_per_visit=4, visits_per_step=4, lanes=2, shuffle_shards=2)
    split = Split(place, order, cache=CacheConfig(directory=str(cache)))
    batches = repr(all_batches(TrainingBatches(split, TEXTS, SIZE, alone(2)), 0))
    return f"{index_digest(place)} {hashlib.sha256(batches.encode()).hexdigest()}"


def run(endpoint: str, *words: str, token: str = "") -> subprocess.CompletedProcess[str]:
    variables = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = os.environ | variables
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300)


def info(endpoint: str, url: str, token: str = "") -> subprocess.CompletedProcess[str]:
    return run(endpoint, "-m", "trainer.cli", "shards", "info", url, token=token)


def test_shards_of_a_data_set_are_those_of_the_directory(shards: Path, tmp_path: Path):
    code = f"import sys; from pathlib import Path; from {__name__} import everything_read as read; "
    code += "print(read(sys.argv[1], Path(sys.argv[2])))"
    with hub(shards.parent) as endpoint:
        done = run(endpoint, "-c", code, url_of(shards), str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == everything_read(str(shards), tmp_path / "none")


@pytest.mark.parametrize("name", ["team/gqa", "team/vqa"])
def test_a_path_or_a_data_set_that_is_not_there_is_one_line(shards: Path, name: str):
    url = f"{url_of(shards, name)}/nowhere"
    with hub(shards.parent) as endpoint:
        done = info(endpoint, url)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"{url}: no index.json there" in line


def test_a_gated_data_set_wants_the_right_token(shards: Path):
    with hub(shards.parent, token="hf_right") as endpoint:
        refused = info(endpoint, url_of(shards), token="hf_wrong")
        opened = info(endpoint, url_of(shards), token="hf_right")
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "index.json: access refused on host" in line
    assert "docs/remote.md" in line
    assert "hf_wrong" not in line
    assert opened.returncode == 0, opened.stderr
