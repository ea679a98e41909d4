"""What is needed when, compared with what a pass reads in fact; a window against its definition."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.format.index import Shard
from shards.plan import EpochOrder, Ints, Order, Share, Visits, in_first_order
from shards.read.ahead import Window, bytes_at_once, check_cache, shards_in_order
from shards.read.micro_batches import EvaluationBatches, Split, TrainingBatches, alone
from tests.corpora import build_corpus
from tests.unit.shards.read.test_loader import SIZE, TEXTS


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = build_corpus(tmp_path_factory.mktemp("ahead"), num_images=24, questions_per_image=6, shard_bytes=1)
    return directory


def opened(shards: Path) -> Split:
    order = Order(seed=5, questions_per_visit=2, visits_per_step=4, lanes=4, shuffle_shards=3)
    return Split(str(shards), order)


def recorded(split: Split) -> set[int]:
    """The numbers of the shards that a split reads from now on."""
    read: set[int] = set()
    files = split.reader.files
    descriptor = files.descriptor

    def recording(shard: Shard) -> int:
        read.add(split.index.shards.index(shard))
        return descriptor(shard)

    files.descriptor = recording
    return read


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_reads_what_it_is_said_to_need_and_its_own_shards_come_first(shards: Path, world_size: int):
    """Also what its negatives are looked for in."""
    for rank in range(world_size):
        dataset = TrainingBatches(opened(shards), TEXTS, SIZE, Share(rank=rank, world_size=world_size, micro_visits=1))
        order, read = dataset.split.epoch(1), recorded(dataset.split)
        for step in range(order.num_steps):
            read.clear()
            for micro in range(dataset.accumulation):
                dataset.prepare(1, step, micro)
            needed = dataset.shards_at(dataset.position(1, step, 0)).tolist()
            assert read <= set(needed)
            visits = np.concatenate(
                [order.micro_batch(step, micro, dataset.share) for micro in range(dataset.accumulation)]
            )
            own = [dataset.split.index.locate(int(order.visits.image[visit]))[0] for visit in visits if visit >= 0]
            assert needed[: len(set(own))] == list(dict.fromkeys(own))


def test_an_evaluation_reads_what_it_is_said_to_need(shards: Path):
    for shuffle_images in (False, True):
        dataset = EvaluationBatches(opened(shards), TEXTS, SIZE, alone(3), shuffle_images=shuffle_images)
        read = recorded(dataset.split)
        for (number,) in dataset.all_keys():
            read.clear()
            dataset.prepare(number)
            assert read <= set(dataset.shards_at(number).tolist())


def test_shards_in_order_is_the_order_of_first_need_from_any_step():
    visits = Visits(np.full(40, 3), 2)
    order = Order(seed=1, questions_per_visit=2, visits_per_step=8, lanes=4, shuffle_shards=2)
    epoch = EpochOrder(visits, np.arange(0, 41, 4), order, 2)
    share = Share(rank=1, world_size=2, micro_visits=2)
    for first in (0, 3, epoch.num_steps - 1):
        needs = [
            shard for step in range(first, epoch.num_steps) for shard in epoch.shards_in_step(step, share).tolist()
        ]
        assert shards_in_order(epoch, share, first) == list(dict.fromkeys(needs))
    assert shards_in_order(epoch, share, epoch.num_steps) == []
    both = [set(shards_in_order(epoch, Share(rank=rank, world_size=2, micro_visits=2))) for rank in range(2)]
    assert both[0] | both[1] == set(range(10))


class Table:
    """A route by its table."""

    def __init__(self, needs: list[list[int]]) -> None:
        self.needs, self.length = needs, len(needs)

    def shards_at(self, position: int) -> Ints:
        return in_first_order(np.array(self.needs[position % self.length], np.int64))


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12),
    st.integers(0, 6),
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
)
@example(needs=[[1, 2, 0], [], [0]], ahead=1, positions=[12, 14])  # 0 was seen last, and is needed first
@settings(deadline=None)
def test_a_window_holds_what_is_needed_now_and_next(needs: list[list[int]], ahead: int, positions: list[int]):
    route = Table(needs)
    window = Window(route, ahead)
    for position in positions:
        now = route.shards_at(position).tolist()
        coming = [shard for at in range(position, position + route.length) for shard in route.shards_at(at).tolist()]
        held = window.move_to(position)
        assert held == list(dict.fromkeys(coming))[: len(now) + ahead]


def test_a_cache_too_small_for_what_is_read_at_once_is_refused(shards: Path):
    split = opened(shards)
    whole = sum(shard.bytes for shard in split.index.shards)
    needs = {
        ranks: bytes_at_once(
            split.epoch(0), split.index, [Share(rank=rank, world_size=4, micro_visits=1) for rank in range(ranks)]
        )
        for ranks in (1, 4)
    }
    assert 0 < needs[1] < needs[4] <= whole
    share = Share(rank=0, world_size=4, micro_visits=1)
    check_cache(needs[1], "s3://b/x", split.epoch(0), split.index, [share])
    with pytest.raises(ConfigError, match=rf"^data.cache.bytes: {needs[1] - 1} is less than the {needs[1]} bytes"):
        check_cache(needs[1] - 1, "s3://b/x", split.epoch(0), split.index, [share])
