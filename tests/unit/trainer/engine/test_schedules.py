"""timm's schedules: its own values at every step, in any order, and one line for what they do not take."""

import pytest
import torch
from timm import scheduler as timm_schedulers

from trainer.engine.schedules import schedule_faults, timm_schedule

PEAK, TOTAL = 3e-4, 40
CASES = [
    ("timm_cosine", "CosineLRScheduler", {"t_initial": TOTAL, "lr_min": 0.1 * PEAK}, {}),
    (
        "timm_cosine",
        "CosineLRScheduler",
        {"t_initial": 9, "lr_min": 0.1 * PEAK},
        {"t_initial": 9, "cycle_limit": 3, "cycle_mul": 1.5, "cycle_decay": 0.5, "warmup_prefix": True, "k_decay": 1.5},
    ),
    ("timm_tanh", "TanhLRScheduler", {"t_initial": TOTAL, "lr_min": 0.1 * PEAK}, {"warmup_lr_init": 1e-6}),
    ("timm_poly", "PolyLRScheduler", {"t_initial": TOTAL, "lr_min": 0.1 * PEAK}, {"power": 2.0}),
    ("timm_step", "StepLRScheduler", {}, {"decay_t": 7, "decay_rate": 0.5}),
    (
        "timm_multistep",
        "MultiStepLRScheduler",
        {},
        {"decay_t": [10, 20, 31], "decay_rate": 0.3, "warmup_prefix": False},
    ),
]


def by_timm(kind: str, warmup: int, arguments: dict) -> list[float]:
    """The rates that timm's own scheduler sets, told the number of steps taken before each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = getattr(timm_schedulers, kind)(optimizer, warmup_t=warmup, t_in_epochs=False, **arguments)
    rates = []
    for step in range(TOTAL + 5):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(("name", "kind", "derived", "options"), CASES)
@pytest.mark.parametrize("warmup", [0, 4])
def test_its_values_are_timms_at_every_step_whatever_was_asked_before(name, kind, derived, options, warmup):
    rate = timm_schedule(
        name,
        peak=PEAK,
        warmup_steps=warmup,
        total_steps=TOTAL,
        final_ratio=0.1 if "lr_min" in derived else 0.0,
        options=options,
    )
    expected = by_timm(kind, warmup, derived | options)
    assert len(set(expected)) > 3, "a course that stands still compares little"
    assert [rate(step) for step in range(TOTAL + 5)] == expected
    assert [rate(step) for step in (17, 3, 30, 0)] == [expected[step] for step in (17, 3, 30, 0)]


@pytest.mark.parametrize(("name", "kind", "derived", "options"), CASES)
def test_what_timm_takes_is_no_fault(name, kind, derived, options):
    assert hasattr(timm_schedulers, kind)
    assert list(schedule_faults(name, options, 0.1 if "lr_min" in derived else 0.0)) == []


@pytest.mark.parametrize(
    ("name", "options", "ratio", "key", "said"),
    [
        ("cosine", {"decay_t": 3}, 0.1, "schedule_options.decay_t", "has no effect on schedule cosine"),
        ("timm_cosine", {"decay_t": 3}, 0.1, "schedule_options.decay_t", "timm_cosine has no such option; "),
        (
            "timm_cosine",
            {"cycle_limits": 3},
            0.1,
            "schedule_options.cycle_limits",
            "timm_cosine has no such option; did you",
        ),
        ("timm_poly", {"lr_min": 3}, 0.1, "schedule_options.lr_min", "is optim.final_lr_ratio; set it there"),
        ("timm_tanh", {"noise_pct": 0.5}, 0.1, "schedule_options.noise_pct", "timm_tanh has no such option; "),
        ("timm_step", {"decay_t": 3}, 0.0, "schedule_options.decay_rate", "is not set, and timm_step falls by it"),
        ("timm_step", {"decay_t": 3, "decay_rate": 0.1}, 0.5, "final_lr_ratio", "has no effect on schedule timm_step"),
        (
            "timm_step",
            {"decay_t": 0, "decay_rate": 0.1},
            0.0,
            "schedule_options",
            "timm_step does not take these values",
        ),
        (
            "timm_multistep",
            {"decay_t": 3, "decay_rate": 0.1},
            0.0,
            "schedule_options",
            "timm_multistep does not take these",
        ),
    ],
)
def test_what_a_schedule_does_not_take_is_named(name, options, ratio, key, said):
    ((found, message),) = schedule_faults(name, options, ratio)
    assert found == key
    assert message.startswith(said)
