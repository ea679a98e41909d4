"""Shards behind a URL give the micro-batches that the directory gives, whatever the number of ranks and workers."""

from pathlib import Path

import pytest

from shards.config import CacheConfig
from shards.plan import Order, Share
from shards.read.loader import EvaluationBatches, Loader, MicroBatch, Split, TrainingBatches, alone
from tests.corpora import build_corpus
from tests.servers import file_server
from tests.unit.shards.read.test_loader import SIZE, TEXTS, all_batches, assert_same

pytest.importorskip("aiohttp", reason="http:// needs aiohttp: pip install 'duoflow[http]'")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = build_corpus(tmp_path_factory.mktemp("remote"), num_images=14, questions_per_image=9)
    return directory


def opened(place: str | Path, cache: CacheConfig | None = None) -> Split:
    order = Order(seed=5, questions_per_visit=4, visits_per_step=4, lanes=2, shuffle_shards=2)
    return Split(str(place), order, cache=cache)


def evaluated(split: Split, workers: int = 0) -> list[MicroBatch]:
    dataset = EvaluationBatches(split, TEXTS, SIZE, alone(3))
    return list(Loader(dataset, workers=workers, pin_memory=False).batches(dataset.all_keys()))


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 1)])
def test_every_micro_batch_is_that_of_the_directory(shards: Path, tmp_path: Path, world_size: int, workers: int):
    with file_server(shards) as (url, server):
        cache = CacheConfig(directory=str(tmp_path / "cache"))
        for rank in range(world_size):
            share = Share(rank=rank, world_size=world_size, micro_visits=2)
            for epoch in range(2):
                here = all_batches(TrainingBatches(opened(shards), TEXTS, SIZE, share), epoch)
                there = all_batches(TrainingBatches(opened(url, cache), TEXTS, SIZE, share), epoch, workers)
                assert_same(there, here)
        assert_same(evaluated(opened(url, cache), workers), evaluated(opened(shards)))
        tars = {name: count for name, count in server.requests.items() if name.endswith(".tar")}
        assert tars == {path.name: 1 for path in shards.glob("*.tar")}, "each is fetched once, in one request"
