import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.training.early_stopping import EarlyStopping

untimed = settings(deadline=None)
scores = st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 3).map(float), max_size=30)


def verdicts(stopping: EarlyStopping, values: list[float]) -> list[tuple[bool, bool]]:
    return [tuple(stopping.observe(value)) for value in values]


def test_it_stops_after_patience_validations_in_a_row_without_progress():
    stopping = EarlyStopping(mode="max", patience=2)
    assert verdicts(stopping, [0.5, 0.4, 0.6, 0.6, 0.1]) == [
        (True, False),
        (False, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert stopping.best == 0.6


def test_without_patience_it_never_stops():
    stopping = EarlyStopping(mode="max", patience=None)
    assert not any(stop for _, stop in verdicts(stopping, [1.0] + [0.0] * 200))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_value_that_is_no_number_is_worse_than_any_number_even_as_the_first(mode, bad):
    stopping = EarlyStopping(mode=mode, patience=2)
    assert verdicts(stopping, [bad, 0.1, bad, bad]) == [
        (False, False),
        (True, False),
        (False, False),
        (False, True),
    ]


def test_a_gain_below_min_delta_is_the_best_but_does_not_renew_the_patience():
    stopping = EarlyStopping(mode="max", patience=2, min_delta=0.1)
    assert verdicts(stopping, [0.50, 0.55, 0.58]) == [(True, False), (True, False), (True, True)]
    assert stopping.best == 0.58


def test_small_gains_add_up_to_progress():
    stopping = EarlyStopping(mode="min", patience=2, min_delta=0.1)
    assert [stop for _, stop in verdicts(stopping, [1.0, 0.94, 0.88, 0.82, 0.76])] == [False] * 5


@untimed
@given(values=scores, patience=st.integers(1, 4), min_delta=st.sampled_from([0.0, 0.5]))
def test_min_is_max_of_the_negated_values(values, patience, min_delta):
    high = EarlyStopping(mode="max", patience=patience, min_delta=min_delta)
    low = EarlyStopping(mode="min", patience=patience, min_delta=min_delta)
    assert verdicts(high, values) == verdicts(low, [-value for value in values])


@untimed
@given(values=scores, cut=st.integers(0, 30), patience=st.integers(1, 4), mode=st.sampled_from(["max", "min"]))
def test_a_restart_through_json_changes_no_verdict(values, cut, patience, mode):
    unbroken = EarlyStopping(mode=mode, patience=patience, min_delta=0.25)
    first = EarlyStopping(mode=mode, patience=patience, min_delta=0.25)
    second = EarlyStopping(mode=mode, patience=patience, min_delta=0.25)
    before = verdicts(first, values[:cut])
    second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert second.stopped == first.stopped
    assert before + verdicts(second, values[cut:]) == verdicts(unbroken, values)
    assert second.best == unbroken.best


def test_a_run_that_had_stopped_goes_on_with_a_longer_patience():
    stopped = EarlyStopping(mode="max", patience=1)
    verdicts(stopped, [0.5, 0.4])
    resumed = EarlyStopping(mode="max", patience=3)
    resumed.load_state(stopped.state())
    assert stopped.stopped
    assert not resumed.stopped


@untimed
@given(values=scores)
def test_the_best_is_the_largest_finite_value_and_the_last_improvement(values):
    stopping = EarlyStopping(mode="max")
    improved = [value for value in values if stopping.observe(value).improved]
    finite = [value for value in values if math.isfinite(value)]
    assert stopping.best == (max(finite) if finite else None)
    assert improved[-1:] == ([stopping.best] if finite else [])
