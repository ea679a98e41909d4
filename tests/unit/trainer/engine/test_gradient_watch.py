"""Parameters that no gradient reaches are found in the first steps, and only then."""

import pytest
import torch
from torch import nn

from shards.errors import ConfigError
from trainer.engine.gradient_watch import GradientWatch


def step(model: nn.Module, loss: torch.Tensor) -> None:
    model.zero_grad()
    loss.backward()


def test_a_parameter_outside_the_loss_is_named():
    used, unused = nn.Linear(2, 1), nn.Linear(2, 1)
    watch = GradientWatch({"used": used.weight, "unused": unused.weight}, patience=1)
    step(used, used(torch.ones(1, 2)).sum())
    with pytest.raises(ConfigError, match=r"no gradient reached unused in the first 1 optimizer step \(1 take no part"):
        watch.report(watch.step_applied())


def test_a_parameter_that_only_gets_zeros_is_named_unless_patience_covers_it():
    weight, gate = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    for patience in (1, 2):
        watch = GradientWatch({"weight": weight, "gate": gate}, patience=patience)
        (weight * gate).sum().backward()
        seen = watch.step_applied()
        if patience == 1:
            with pytest.raises(ConfigError, match=r"no gradient reached weight in .* 1 only got zeros"):
                watch.report(seen)
            continue
        assert seen is None
        (weight * (gate + 1)).sum().backward()
        watch.report(watch.step_applied())


def test_a_gradient_in_any_micro_step_or_on_any_rank_is_enough():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    watches = [GradientWatch({"first": first, "second": second}, patience=1) for _ in range(2)]
    first.sum().backward()
    second.sum().backward()
    watches[0].report(watches[0].step_applied())
    seen_here, seen_there = torch.tensor([2, 0]), torch.tensor([0, 2])
    watches[1].report(torch.maximum(seen_here, seen_there))
    with pytest.raises(ConfigError, match="no gradient reached second in"):
        watches[1].report(seen_here)


def test_a_gradient_that_is_not_finite_counts_as_one():
    weight = nn.Parameter(torch.ones(1))
    watch = GradientWatch({"weight": weight}, patience=1)
    (weight * float("nan")).sum().backward()
    watch.report(watch.step_applied())


def test_nothing_is_looked_at_after_the_last_watched_step():
    weight = nn.Parameter(torch.ones(1))
    watch = GradientWatch({"weight": weight}, patience=1)
    weight.sum().backward()
    watch.step_applied()
    assert not watch.watching
    assert not weight._backward_hooks, "a hook costs time at every later step"


def test_many_missing_parameters_are_counted_rather_than_listed():
    weights = {f"layer{i}": nn.Parameter(torch.ones(1)) for i in range(9)}
    watch = GradientWatch(weights, patience=1)
    with pytest.raises(ConfigError, match=r"layer0, layer1, layer2, layer3, layer4 and 4 more"):
        watch.report(watch.step_applied())
