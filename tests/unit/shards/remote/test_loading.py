"""Shards behind a URL give the micro-batches that the directory gives, whatever the number of ranks and workers."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from shards.config import CacheConfig
from shards.plan import Order, Share
from shards.read.loader import Loader
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import EvaluationBatches, Split, TrainingBatches, alone, training_keys
from tests.corpora import build_corpus
from tests.runs import write_recipe
from tests.servers import Behaviour, file_server
from tests.unit.shards.read.test_loader import SIZE, TEXTS, all_batches, assert_same
from trainer.cli import main

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


def test_a_fetcher_that_is_killed_is_not_missed(shards: Path, tmp_path: Path):
    with file_server(shards) as (url, _):
        dataset = TrainingBatches(opened(url, CacheConfig(directory=str(tmp_path))), TEXTS, SIZE, alone(2))
        loader = Loader(dataset, workers=1, pin_memory=False)
        os.kill(loader._fetcher.process_id, signal.SIGKILL)
        keys = training_keys(0, 0, dataset.split.steps_per_epoch, dataset.accumulation)
        assert_same(list(loader.batches(keys)), all_batches(TrainingBatches(opened(shards), TEXTS, SIZE, alone(2)), 0))


def test_shards_are_there_before_anybody_asks_for_them_and_the_bound_holds(tmp_path: Path):
    shards, index = build_corpus(tmp_path, num_images=16, questions_per_image=6, shard_bytes=1)
    cache = tmp_path / "cache"
    bound, most = 8 * max(shard.bytes for shard in index.shards), 0

    def measure(_: str, __: int, data: bytes) -> bytes:
        nonlocal most
        with contextlib.suppress(FileNotFoundError):  # evicted between its name and its size
            most = max(most, sum(path.stat().st_size for path in cache.iterdir()))
        return data

    with file_server(shards, Behaviour(change=measure)) as (url, server):
        split = opened(url, CacheConfig(directory=str(cache), bytes=bound, ahead=1))
        dataset = TrainingBatches(split, TEXTS, SIZE, alone(2))
        loader = Loader(dataset, workers=0, pin_memory=False)
        wanted = {index.shards[number].name for number in dataset.shards_at(0)}
        deadline = time.monotonic() + 120
        while not wanted <= server.requests.keys():
            assert time.monotonic() < deadline, "nobody fetches ahead"
            time.sleep(0.05)
        for epoch in range(2):
            keys = training_keys(epoch, 0, dataset.split.steps_per_epoch, dataset.accumulation)
            here = all_batches(TrainingBatches(opened(shards), TEXTS, SIZE, alone(2)), epoch)
            assert_same(list(loader.batches(keys)), here)
        assert bound / 2 < most <= bound
        assert server.requests.total() > 1 + len(index.shards), "some had to be fetched in both epochs"


def test_info_and_verify_read_a_url(shards: Path, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv("DUOFLOW_CACHE", str(tmp_path / "cache"))
    with file_server(shards) as (url, _):
        assert main(["shards", "verify", url]) == 0
        assert main(["shards", "info", url, "--json"]) == 0
        printed = capsys.readouterr().out
        assert f"{url}: no fault in" in printed
        assert '"format": "gqa"' in printed
        assert not list((tmp_path / "cache").iterdir()), "what is verified is not kept"
    broken = Behaviour(change=lambda name, _, data: data[:-1] + b"?" if name == "000001.tar" else data)
    with file_server(shards, broken) as (url, _):
        assert main(["shards", "verify", url]) == 2
        assert f"{url}/000001.tar: sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("{url}/nowhere", "no index.json there"),
        ("https://me:s3cret@h.invalid/x", "a user or a password"),
        ("https://h.invalid/x?sig=s3cret", "no ?query"),
        ("s4://bucket/x", "did you mean s3://?"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line_and_starts_nothing(
    shards: Path, tmp_path: Path, capsys, place: str, said: str
):
    recipe = write_recipe(tmp_path / "tiny.yaml", {"train": str(shards)})
    with file_server(shards) as (url, _):
        assert main(["train", str(recipe), f"data.train={place.format(url=url)}"]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert "s3cret" not in printed
    assert not (tmp_path / "runs").exists()
