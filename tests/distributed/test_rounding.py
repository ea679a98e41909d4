"""How far apart one and two ranks get by rounding alone: what Adam makes of it, and that the losses hardly see it.

Their micro-batches are equal and their sums are not: (((a + b) + c) + d) against ((a + b) + (c + d)).
"""

import pytest

from tests.distributed.conftest import Results
from tests.distributed.rounding import CHOICES, KEY_BIAS, LEARNING_RATE, STEPS

LOSSES_DIFFER_BY = 5e-5
"""Relative, at most: what docs/scaling.md promises and explains."""


def _parameters_differ(one: Results, two: Results, choice: str) -> dict[str, float]:
    """The largest difference of a coordinate of each parameter behind the last step, in learning rates."""
    alone, shared = (results["rounding"][0][choice]["parameters"] for results in (one, two))
    return {
        name: max(abs(a - b) for a, b in zip(values, shared[name], strict=True)) / LEARNING_RATE
        for name, values in alone.items()
    }


@pytest.mark.parametrize("choice", CHOICES)
def test_losses_of_one_and_two_ranks_are_equal_but_for_rounding(alone: Results, two_ranks: Results, choice: str):
    one, two = (results["rounding"][0][choice]["losses"] for results in (alone, two_ranks))
    assert len(one) == STEPS
    assert two == pytest.approx(one, rel=LOSSES_DIFFER_BY)
    assert min(one) < one[0], "a model that does not learn proves nothing"


def test_adam_makes_steps_of_what_is_only_rounding(alone: Results, two_ranks: Results):
    """The bias of keys has no gradient; divided by its own size, its rounding error is a direction."""
    adam = _parameters_differ(alone, two_ranks, "adamw")
    assert max(adam, key=lambda name: adam[name]) == KEY_BIAS
    assert adam[KEY_BIAS] > 1e-3


@pytest.mark.parametrize("choice", ["adamw, eps 1e-3", "sgd"])
def test_without_that_division_no_parameter_tells_the_ranks_apart(alone: Results, two_ranks: Results, choice: str):
    adam, other = (_parameters_differ(alone, two_ranks, name) for name in ("adamw", choice))
    assert other[KEY_BIAS] < adam[KEY_BIAS] / 10
    assert max(other.values()) < 1e-2
