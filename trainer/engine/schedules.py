"""timm's schedules of the learning rate as pure functions of the optimizer step."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

ScheduleName = Literal["cosine", "timm_cosine", "timm_tanh", "timm_poly", "timm_step", "timm_multistep"]

_CLASSES = {
    "timm_cosine": "CosineLRScheduler",
    "timm_tanh": "TanhLRScheduler",
    "timm_poly": "PolyLRScheduler",
    "timm_step": "StepLRScheduler",
    "timm_multistep": "MultiStepLRScheduler",
}
_OWNED = {"warmup_t": "optim.warmup_steps", "lr_min": "optim.final_lr_ratio"}
_NOT_OFFERED = frozenset(
    ("optimizer", "t_in_epochs", "noise_range_t", "noise_pct", "noise_std", "noise_seed", "initialize")
)
_NEEDED = {"timm_step": ("decay_t", "decay_rate"), "timm_multistep": ("decay_t", "decay_rate")}


def timm_schedule(
    name: str,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    final_ratio: float,
    options: Mapping[str, Any],
) -> Callable[[int], float]:
    """The learning rate of an optimizer step (the first is 0), as timm's `Scheduler.step_update` sets it.

    Args:
        peak: timm's base value.
        warmup_steps: its `warmup_t`, a line from `warmup_lr_init`.
        total_steps: its `t_initial`, unless the options give one; the warm-up counts in, unless `warmup_prefix`.
        final_ratio: its `lr_min` as a part of the peak, where the schedule has one.
        options: further keyword arguments of timm's scheduler, in optimizer steps.
    """
    import torch  # the checks of a recipe import this file
    from timm import scheduler as timm_schedulers

    kind = getattr(timm_schedulers, _CLASSES[name])
    known = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"warmup_t": warmup_steps, "t_in_epochs": False}
    if "lr_min" in known:
        arguments["lr_min"] = peak * final_ratio
    if "t_initial" in known:
        arguments["t_initial"] = total_steps
    group = {"params": [torch.nn.Parameter(torch.zeros(1))]}
    optimizer = torch.optim.SGD([group], lr=peak)
    scheduler = kind(optimizer, **arguments | dict(options))

    def rate(step: int) -> float:
        scheduler.step_update(step)
        return optimizer.param_groups[0]["lr"]

    return rate


def schedule_faults(name: str, options: Mapping[str, Any], final_ratio: float) -> Iterator[tuple[str, str]]:
    """(key below `optim`, what is wrong) of everything that a schedule does not take."""
    if name == "cosine":
        for option in options:
            yield f"schedule_options.{option}", "has no effect on schedule cosine; remove it, or set timm_cosine"
        return

    from timm import scheduler as timm_schedulers

    signature = inspect.signature(getattr(timm_schedulers, _CLASSES[name])).parameters
    known = [option for option in signature if option not in _NOT_OFFERED and option not in _OWNED]
    if final_ratio and "lr_min" not in signature:
        yield "final_lr_ratio", f"has no effect on schedule {name}, whose end its decays decide; set it to 0"
    for option in options:
        if option in _OWNED:
            yield f"schedule_options.{option}", f"is {_OWNED[option]}; set it there"
        elif option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            yield f"schedule_options.{option}", f"{name} has no such option; {hint}"
    missing = [option for option in _NEEDED.get(name, ()) if option not in options]
    for option in missing:
        yield f"schedule_options.{option}", f"is not set, and {name} falls by it; set it, in optimizer steps or a rate"
    if not missing and set(options) <= set(known):
        yield from _value_faults(name, options)


def _value_faults(name: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whether timm computes with the values: tried on a short run, since its schedulers check little themselves."""
    try:
        rate = timm_schedule(name, peak=1.0, warmup_steps=2, total_steps=10, final_ratio=0.0, options=options)
        rates = [rate(step) for step in range(12)]
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
        yield "schedule_options", f"{name} does not take these values: {str(error) or type(error).__name__}"
        return
    if not all(isinstance(value, int | float) and value >= 0 for value in rates):
        yield "schedule_options", f"{name} gives no learning rates with these values: {rates[-1]!r}"
