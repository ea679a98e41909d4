import math
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.training.schedule import learning_rate

untimed = settings(deadline=None)
counts = st.integers(0, 500)
ratios = st.floats(0.0, 1.0)


def rates(*, steps: int, peak: float = 1.0, **schedule) -> list[float]:
    return [learning_rate(step, peak=peak, **schedule) for step in range(steps)]


@untimed
@given(warmup=counts, total=st.integers(1, 500), ratio=ratios, peak=st.floats(1e-8, 1.0))
def test_no_step_of_a_run_has_a_rate_of_zero_or_above_the_peak(warmup, total, ratio, peak):
    for rate in rates(steps=total, peak=peak, warmup_steps=warmup, total_steps=total, final_ratio=ratio):
        assert 0.0 < rate <= peak * (1 + 1e-12)


@untimed
@given(warmup=counts, total=st.integers(1, 500), ratio=ratios)
def test_it_rises_through_the_warm_up_and_then_never_rises_again(warmup, total, ratio):
    values = rates(steps=total + 3, warmup_steps=warmup, total_steps=total, final_ratio=ratio)
    rising, falling = values[: warmup + 1], values[warmup:]
    if warmup < total:
        assert all(before < after for before, after in pairwise(rising))
        assert values[warmup] == 1.0
    assert all(before >= after for before, after in pairwise(falling))


@untimed
@given(warmup=st.integers(1, 500), total=st.integers(1, 500), step=st.integers(0, 499))
def test_the_warm_up_is_a_line_that_does_not_know_how_long_the_run_is(warmup, total, step):
    assume(step < warmup)
    rate = learning_rate(step, peak=2.0, warmup_steps=warmup, total_steps=total, final_ratio=0.0)
    assert rate == pytest.approx(2.0 * (step + 1) / (warmup + 1))


@untimed
@given(warmup=counts, length=st.integers(1, 500), ratio=ratios, late=st.integers(0, 10))
def test_after_the_last_step_it_is_the_final_rate(warmup, length, ratio, late):
    total = warmup + length
    rate = learning_rate(total + late, peak=3.0, warmup_steps=warmup, total_steps=total, final_ratio=ratio)
    assert rate == pytest.approx(3.0 * ratio)


@untimed
@given(warmup=counts, half=st.integers(1, 300), ratio=ratios)
def test_halfway_through_the_cosine_it_is_the_mean_of_peak_and_final_rate(warmup, half, ratio):
    rate = learning_rate(warmup + half, peak=1.0, warmup_steps=warmup, total_steps=warmup + 2 * half, final_ratio=ratio)
    assert rate == pytest.approx((1.0 + ratio) / 2)


def test_a_quarter_of_the_cosine_has_fallen_by_its_known_share():
    rate = learning_rate(25, peak=1.0, warmup_steps=0, total_steps=100, final_ratio=0.0)
    assert rate == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate(0, peak=1e-4, warmup_steps=0, total_steps=1, final_ratio=0.0) == 1e-4


@pytest.mark.parametrize("total", [1, 9, 10])
def test_a_run_no_longer_than_its_warm_up_sees_only_the_line(total):
    values = rates(steps=total, warmup_steps=10, total_steps=total, final_ratio=0.1)
    assert values == pytest.approx([(step + 1) / 11 for step in range(total)])
