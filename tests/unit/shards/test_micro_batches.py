"""Micro-batches packed by tokens: what holds for all lengths, limits and shares of a step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.micro_batches import Lengths, micro_batches_needed, pack, padded_tokens
from shards.plan import PADDING, EpochOrder, Order, Share, Visits


@st.composite
def some_lengths(draw: st.DrawFn, least: int = 1) -> Lengths:
    visits = draw(st.lists(st.tuples(st.integers(1, 20), st.integers(3, 40)), min_size=least, max_size=24))
    table = np.array(visits, dtype=np.int64).reshape(-1, 2)
    return Lengths(table[:, 0], table[:, 1])


@settings(deadline=None)
@given(some_lengths(), st.integers(1, 4000))
def test_every_visit_once_and_within_the_limit_unless_it_is_too_large_alone(lengths: Lengths, limit: int):
    groups = pack(lengths, micro_batches_needed(lengths, limit))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths.questions)))
    for group in groups:
        assert padded_tokens(lengths, group) <= limit or len(group) == 1


@settings(deadline=None)
@given(some_lengths(), st.integers(1, 4000), st.integers(0, 3))
def test_more_micro_batches_than_needed_share_the_same_visits(lengths: Lengths, limit: int, more: int):
    needed = micro_batches_needed(lengths, limit)
    groups = pack(lengths, needed + more)
    assert len(groups) == needed + more
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths.questions)))
    largest = max(padded_tokens(lengths, group) for group in groups)
    assert largest <= max(padded_tokens(lengths, group) for group in pack(lengths, needed))


@settings(deadline=None)
@given(some_lengths(least=2))
def test_of_visits_with_as_many_questions_two_micro_batches_are_no_larger_than_two_halves(lengths: Lengths):
    alike = Lengths(np.full_like(lengths.questions, 3), lengths.longest)
    halves = np.array_split(np.arange(len(alike.longest)), 2)
    packed, plain = (max(padded_tokens(alike, part) for part in parts) for parts in (pack(alike, 2), halves))
    assert packed <= plain


def test_visits_of_like_lengths_go_together():
    lengths = Lengths(np.full(4, 10), np.array([8, 32, 8, 32]))
    assert [group.tolist() for group in pack(lengths, 2)] == [[0, 2], [1, 3]]
    assert micro_batches_needed(lengths, 640) == 2
    assert micro_batches_needed(lengths, 639) == 3


def test_a_rank_without_visits_has_empty_micro_batches():
    nothing = Lengths(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert micro_batches_needed(nothing, 100) == 1
    assert [len(group) for group in pack(nothing, 3)] == [0, 0, 0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(3, 30)), min_size=1, max_size=40),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 900),
)
def test_all_ranks_have_as_many_micro_batches_and_together_the_visits_of_the_step(
    images: list[tuple[int, int]], lanes: int, limit: int
):
    num_questions = np.array([1 + images[0][0], *(count for count, _ in images[1:])], dtype=np.int64)
    longest = np.array([length for _, length in images], dtype=np.int64)
    order = Order(seed=1, questions_per_visit=4, visits_per_step=lanes * 3, lanes=lanes, shuffle_shards=2)
    epoch = EpochOrder(Visits(num_questions, 4), np.array([0, len(images)]), order, epoch=0)
    for step in range(epoch.num_steps):
        visits = epoch.step(step)
        expected = sorted(visits[visits != PADDING].tolist())
        for world_size in (size for size in range(1, lanes + 1) if lanes % size == 0):
            ranks = [
                epoch.packed_micro_batches(
                    step, Share(rank=rank, world_size=world_size, micro_visits=1, micro_tokens=limit), longest
                )
                for rank in range(world_size)
            ]
            assert len({len(groups) for groups in ranks}) == 1
            assert sorted(np.concatenate([group for groups in ranks for group in groups]).tolist()) == expected
