"""The order of an epoch: what holds for every data set, batch and world size."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.plan import (
    PADDING,
    EpochOrder,
    EvaluationOrder,
    Order,
    Share,
    Visits,
    accumulation_steps,
    default_lanes,
    hash64,
    hash_order,
    limit_images,
    sample_images,
)


@st.composite
def epochs(draw: st.DrawFn) -> tuple[EpochOrder, dict]:
    num_questions = np.array(draw(st.lists(st.integers(0, 20), min_size=1, max_size=60)), dtype=np.int64)
    num_questions[draw(st.integers(0, len(num_questions) - 1))] += 1
    cuts = draw(st.lists(st.integers(0, len(num_questions)), max_size=8))
    first_image = np.array(sorted({0, len(num_questions), *cuts}))
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    order = Order(
        seed=draw(st.integers(0, 2**31)),
        questions_per_visit=draw(st.integers(1, 9)),
        visits_per_step=lanes * draw(st.integers(1, 4)),
        lanes=lanes,
        shuffle_shards=draw(st.integers(1, 4)),
    )
    parts = {"num_questions": num_questions, "first_image": first_image, "order": order}
    visits = Visits(num_questions, order.questions_per_visit)
    return EpochOrder(visits, first_image, order, draw(st.integers(0, 5))), parts


def asked(epoch: EpochOrder, visits: np.ndarray) -> list[tuple[int, int]]:
    """(image, question) of every question of these visits."""
    real = visits[visits != PADDING]
    return [(int(epoch.visits.image[visit]), int(q)) for visit in real for q in epoch.questions(int(visit))]


def shares(order: Order) -> list[Share]:
    """Every way to share a step: all world sizes that divide the lanes, with all micro-batches that fit."""
    worlds = [size for size in range(1, order.lanes + 1) if order.lanes % size == 0]
    return [
        Share(rank=0, world_size=world, micro_visits=micro)
        for world in worlds
        for micro in range(1, order.visits_per_step // world + 1)
        if (order.visits_per_step // world) % micro == 0
    ]


@given(epochs())
@settings(max_examples=150, deadline=None)
def test_an_epoch_gives_every_question_exactly_once(case: tuple[EpochOrder, dict]) -> None:
    epoch, parts = case
    given_once = [pair for step in range(epoch.num_steps) for pair in asked(epoch, epoch.step(step))]
    expected = [(image, q) for image, count in enumerate(parts["num_questions"]) for q in range(count)]
    assert sorted(given_once) == expected


@given(epochs())
@settings(max_examples=75, deadline=None)
def test_every_world_size_and_micro_batch_computes_the_same_global_batches(case: tuple[EpochOrder, dict]) -> None:
    epoch, parts = case
    for step in {0, epoch.num_steps - 1}:
        expected = sorted(epoch.step(step).ravel())
        for share in shares(parts["order"]):
            micro_steps = accumulation_steps(parts["order"], share)
            ranks = [
                Share(rank=r, world_size=share.world_size, micro_visits=share.micro_visits)
                for r in range(share.world_size)
            ]
            computed = [epoch.micro_batch(step, micro, rank) for rank in ranks for micro in range(micro_steps)]
            assert sorted(np.concatenate(computed)) == expected
            assert all(len(batch) == share.micro_visits for batch in computed)


@given(epochs())
@settings(max_examples=75, deadline=None)
def test_a_step_counts_its_questions_and_an_epoch_pads_less_than_one_batch(
    case: tuple[EpochOrder, dict],
) -> None:
    epoch, parts = case
    steps = [epoch.step(step) for step in range(epoch.num_steps)]
    assert [epoch.questions_in_step(step) for step in range(epoch.num_steps)] == [len(asked(epoch, s)) for s in steps]
    order = parts["order"]
    padding = sum(int((step == PADDING).sum()) for step in steps)
    assert padding == epoch.num_steps * order.visits_per_step - len(epoch.visits)
    assert padding < order.visits_per_step


@given(epochs())
@settings(max_examples=75, deadline=None)
def test_visits_of_an_image_differ_by_at_most_one_question_and_hold_at_most_k(case: tuple[EpochOrder, dict]) -> None:
    epoch, parts = case
    visits = epoch.visits
    sizes = [len(epoch.questions(visit)) for visit in range(len(visits))]
    assert sizes == visits.sizes.tolist()
    assert max(sizes) <= parts["order"].questions_per_visit
    for image in set(visits.image.tolist()):
        of_image = visits.sizes[visits.image == image]
        assert of_image.max() - of_image.min() <= 1
        assert len(of_image) == -(-parts["num_questions"][image] // parts["order"].questions_per_visit)


@given(epochs())
@settings(max_examples=75, deadline=None)
def test_the_order_is_a_function_of_its_inputs_and_negatives_stay_in_the_block(case: tuple[EpochOrder, dict]) -> None:
    epoch, parts = case
    again = EpochOrder(
        Visits(parts["num_questions"], parts["order"].questions_per_visit),
        parts["first_image"],
        parts["order"],
        epoch.epoch,
    )
    last = epoch.num_steps - 1  # reached directly here, after all the others there
    for step in range(again.num_steps):
        reached = again.step(step)
    np.testing.assert_array_equal(epoch.step(last), reached)
    seen = np.concatenate([epoch.block(image) for image in {int(i) for i in epoch.visits.image}])
    assert set(seen.tolist()) == set(range(len(epoch.visits)))
    for image in {int(i) for i in epoch.visits.image}:
        assert image in epoch.visits.image[epoch.block(image)]


@given(epochs())
@settings(max_examples=150, deadline=None)
def test_an_order_made_block_by_block_is_that_of_one_sort_of_all_visits(case: tuple[EpochOrder, dict]) -> None:
    """A changed order would change what a run that is resumed trains on."""
    epoch, parts = case
    order, counts = parts["order"], parts["num_questions"]
    image = np.repeat(np.arange(len(counts)), -(-counts // order.questions_per_visit))
    num_shards = len(parts["first_image"]) - 1
    block_of_shard = np.empty(num_shards, np.int64)
    in_order = hash_order(order.seed, epoch.epoch, "shard", np.arange(num_shards))
    block_of_shard[in_order] = np.arange(num_shards) // order.shuffle_shards
    block = block_of_shard[np.repeat(np.arange(num_shards), np.diff(parts["first_image"]))][image]
    rank = np.empty(len(image), np.int64)
    rank[hash_order(order.seed, epoch.epoch, "visit", np.arange(len(image)))] = np.arange(len(image))
    sequence = np.lexsort((rank, block))
    np.testing.assert_array_equal(epoch.sequence, sequence)
    last = epoch.num_steps - 1
    bounds = np.arange(order.lanes + 1) * len(image) // order.lanes
    per_lane = order.visits_per_step // order.lanes
    for lane, (start, stop) in enumerate(pairwise(bounds)):
        expected = sequence[start:stop][last * per_lane : (last + 1) * per_lane].tolist()
        assert epoch.step(last)[lane].tolist() == expected + [PADDING] * (per_lane - len(expected))


def test_an_image_with_ten_thousand_questions_among_a_million_tiny_ones_is_gone_through_once() -> None:
    counts = np.ones(1_000_000, np.int32)
    counts[777_777] = 10_000
    visits, first_image = Visits(counts, 16), np.arange(0, 1_000_001, 50_000)
    order = Order(seed=1, questions_per_visit=16, visits_per_step=512, lanes=64, shuffle_shards=2)
    epoch = EpochOrder(visits, first_image, order, 4)
    assert len(visits) == 999_999 + 625
    assert np.array_equal(np.sort(epoch.sequence), np.arange(len(visits)))
    large = range(int(visits.first_visit[777_777]), int(visits.first_visit[777_778]))
    assert sorted(np.concatenate([epoch.questions(visit) for visit in large]).tolist()) == list(range(10_000))
    assert visits.sizes_of(np.array(large)).tolist() == [16] * 625
    step = epoch.num_steps - 2
    assert epoch.questions_in_step(step) == int(visits.sizes[epoch.step(step)].sum())


def test_a_step_makes_the_blocks_that_its_lanes_are_in_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a billion questions would be sorted in every process before its first step."""
    visits, first_image = Visits(np.full(4_000, 3), 2), np.arange(0, 4_001, 10)
    order = Order(seed=1, questions_per_visit=2, visits_per_step=8, lanes=4, shuffle_shards=2)
    made: list[int] = []
    make = EpochOrder._order_block
    monkeypatch.setattr(EpochOrder, "_order_block", lambda self, block: made.append(block) or make(self, block))
    epoch = EpochOrder(visits, first_image, order, 0)
    assert epoch.num_steps == 1_000
    assert not made, "the length of an epoch needs no order"
    epoch.questions_in_step(613)
    assert len(made) <= 2 * order.lanes


def test_epochs_and_seeds_give_other_orders() -> None:
    visits, first_image = Visits(np.full(200, 3), 2), np.arange(0, 201, 20)

    def order(seed: int, epoch: int) -> list[int]:
        settings_ = Order(seed=seed, questions_per_visit=2, visits_per_step=8, lanes=4, shuffle_shards=3)
        return EpochOrder(visits, first_image, settings_, epoch).sequence.tolist()

    orders = [order(1, 0), order(1, 1), order(2, 0)]
    assert len({tuple(o) for o in orders}) == 3
    assert order(1, 0) == orders[0]


def test_the_hash_is_the_same_on_every_machine_and_library_version() -> None:
    """A changed value would silently change every order: runs could no longer be resumed or compared."""
    values = hash64(7, 3, "visit", np.array([0, 1, 2**40]))
    assert values.tolist() == EXPECTED_HASHES


EXPECTED_HASHES = [15711743238577375486, 6630019735749390826, 8093909439261195426]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_evaluation_gives_every_question_once_on_any_world_size(
    counts: list[int], k: int, world: int, micro: int
) -> None:
    visits = Visits(np.array(counts), k)
    ranks = [EvaluationOrder(visits, Share(rank=r, world_size=world, micro_visits=micro)) for r in range(world)]
    assert len({order.num_micro_batches for order in ranks}) == 1  # unequal counts would hang a collective
    pairs = [
        (int(visits.image[visit]), int(q))
        for order in ranks
        for number in range(order.num_micro_batches)
        for visit in order.micro_batch(number)
        if visit != PADDING
        for q in order.questions(int(visit))
    ]
    assert pairs == [(image, q) for image, count in enumerate(counts) for q in range(count)]


def test_default_lanes_is_the_largest_divisor_up_to_64() -> None:
    assert [default_lanes(b) for b in (1, 6, 64, 96, 128, 134)] == [1, 6, 64, 48, 64, 2]


def test_a_world_size_that_does_not_divide_the_lanes_is_refused_with_those_that_do() -> None:
    order = Order(seed=1, questions_per_visit=4, visits_per_step=12, lanes=6, shuffle_shards=1)
    with pytest.raises(
        ConfigError, match=r"batch\.lanes: 6 lanes cannot be shared by 4 ranks.*1, 2, 3, 6 \(or set batch"
    ):
        accumulation_steps(order, Share(rank=0, world_size=4, micro_visits=1))
    with pytest.raises(ConfigError, match=r"1, 2, 3, 6 \(or make batch\.visits=12 a multiple of 5\)"):
        accumulation_steps(order, Share(rank=0, world_size=5, micro_visits=1))
    with pytest.raises(ConfigError, match=r"batch\.micro_visits: 4 does not divide the 6 visits.*1, 2, 3, 6"):
        accumulation_steps(order, Share(rank=0, world_size=2, micro_visits=4))


def test_limits_and_samples_keep_whole_images() -> None:
    counts = np.array([0, 3, 0, 2, 5, 1])
    assert limit_images(counts, 2).tolist() == [0, 3, 0, 2, 0, 0]
    sampled = sample_images(counts, 2, seed=3)
    assert (sampled > 0).sum() == 2
    assert set(sampled.tolist()) <= set(counts.tolist())
    assert sample_images(counts, 4, seed=3) is counts
    np.testing.assert_array_equal(sampled, sample_images(counts, 2, seed=3))


@pytest.mark.parametrize("world_size", [1, 64, 96, 192, 384])
def test_lanes_that_were_set_let_a_run_grow_beyond_64_ranks(world_size: int) -> None:
    """The lanes of a run stay what they are, and with them what a step is made of."""
    order = Order(seed=1, questions_per_visit=4, visits_per_step=768, lanes=384, shuffle_shards=2)
    epoch = EpochOrder(Visits(np.full(9_000, 7), 4), np.arange(0, 9_001, 100), order, 0)
    ranks = [Share(rank=rank, world_size=world_size, micro_visits=2) for rank in range(world_size)]
    micro_steps = accumulation_steps(order, ranks[0])
    computed = [epoch.micro_batch(3, micro, rank) for rank in ranks for micro in range(micro_steps)]
    assert sorted(np.concatenate(computed)) == sorted(epoch.step(3).ravel())


def test_a_world_that_the_default_lanes_do_not_allow_is_told_how_to() -> None:
    lanes = default_lanes(768)
    order = Order(seed=1, questions_per_visit=4, visits_per_step=768, lanes=lanes, shuffle_shards=2)
    with pytest.raises(ConfigError, match=r"set batch\.lanes to a multiple of 128 that divides batch\.visits=768"):
        accumulation_steps(order, Share(rank=0, world_size=128, micro_visits=2))
