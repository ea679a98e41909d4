"""When a run validates, saves and ends is arithmetic: every step of small runs is looked at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import write_recipe
from trainer.config import load_config
from trainer.training.milestones import Milestones

STEPS = st.integers(1, 12)
EVERY = st.none() | STEPS
PLANS = st.builds(
    Milestones, steps_per_epoch=STEPS, total_steps=st.integers(1, 40), validate_every=EVERY, save_every=EVERY
)


def of(tmp_path, *overrides: str, steps_per_epoch: int = 5) -> Milestones:
    recipe = write_recipe(tmp_path / "tiny.yaml", {"train": "train", "val": "val"})
    return Milestones.of(load_config(recipe, overrides), steps_per_epoch)


def validated(plan: Milestones) -> list[int]:
    return [step for step in range(plan.total_steps + 1) if plan.validates_at(step)]


def saved(plan: Milestones) -> list[int]:
    return [step for step in range(1, plan.total_steps + 1) if plan.saves_at(step)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), [5, 10]),
        (("limits.epochs=5", "validate_every.epochs=2"), [10, 20, 25]),
        (("validate_every.steps=4",), [4, 8, 10]),
        (("limits.max_steps=7",), [5, 7]),
        (("limits.max_steps=700",), [5, 10]),
        (("data.val=null",), []),
    ],
)
def test_a_recipe_validates_at_its_interval_and_at_the_end(tmp_path, overrides: tuple[str, ...], expected: list[int]):
    plan = of(tmp_path, *overrides)
    assert validated(plan) == expected
    assert plan.total_validations == len(expected)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("data.val=null",), [5, 10]),
        (("data.val=null", "limits.max_steps=7"), [5, 7]),
        (("checkpoint.every_steps=4",), [4, 5, 8, 10]),
        (("validate_every.steps=3",), [3, 5, 6, 9, 10]),
    ],
)
def test_a_recipe_saves_at_validations_epochs_its_interval_and_the_end(tmp_path, overrides, expected: list[int]):
    assert saved(of(tmp_path, *overrides)) == expected


@given(PLANS)
def test_validations_are_counted_as_they_happen(plan: Milestones):
    assert plan.total_validations == len(validated(plan))


@given(PLANS)
def test_nothing_is_lost_at_a_validation_an_epoch_or_the_end(plan: Milestones):
    must = {
        *validated(plan),
        *range(plan.steps_per_epoch, plan.total_steps + 1, plan.steps_per_epoch),
        plan.total_steps,
    }
    assert must <= set(saved(plan))


@given(PLANS, st.integers(0, 50))
def test_a_longer_run_adds_milestones_and_moves_none_but_the_end(plan: Milestones, more: int):
    longer = Milestones(**{**vars(plan), "total_steps": plan.total_steps + more})
    for steps in (validated, saved):
        before_the_end = {step for step in steps(plan) if step < plan.total_steps}
        assert before_the_end == {step for step in steps(longer) if step < plan.total_steps}
