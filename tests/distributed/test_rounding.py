"""How far apart one and two ranks get by rounding alone: what Adam makes of it, and that the losses hardly see it.

Their micro-batches are equal and their sums are not: (((a + b) + c) + d) against ((a + b) + (c + d)).
"""

import pytest
import torch

from tests.distributed.conftest import Results
from tests.distributed.rounding import CHOICES, KEY_BIAS, LEARNING_RATE, STEPS
from trainer.engine.optimizers import build_optimizer

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


@pytest.mark.parametrize(("optimizer", "is_whole"), [("adamw", True), ("adamw, eps 1e-3", False), ("sgd", False)])
def test_a_gate_that_rounding_opens_is_a_whole_step_of_adam(optimizer: str, is_whole: bool):
    """A ReLU at its threshold with a gradient of 5e-6 behind it: DIFNet's feed-forward has thousands of them."""

    def moved(bias: float) -> float:
        """By the first step, in learning rates."""
        weight = torch.tensor([1.0], requires_grad=True)
        chosen = build_optimizer(CHOICES[optimizer], [{"params": [weight], "weight_decay": 0.0}], LEARNING_RATE)
        (5e-6 * torch.relu(weight - 1.0 + bias)).sum().backward()
        chosen.step()
        return (1.0 - weight.item()) / LEARNING_RATE

    assert moved(-1e-7) == 0.0
    assert (moved(1e-7) > 0.9) == is_whole
