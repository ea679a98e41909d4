"""Times in alternating rounds, so that whatever else the machine does meets every contender, and their ratios."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

Seconds = dict[str, float]
"""Seconds of one step, by contender."""


def time_rounds(
    steps: Mapping[str, Callable[[], None]],
    *,
    rounds: int,
    seconds_at_least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Seconds]:
    """Measure every step in every round, each round beginning with another one.

    Args:
        steps: return when their work is done, also that of a device; warmed up already.
        seconds_at_least: a step runs again until so much time has passed; the mean counts.
        progress: told the times of each round.
    """
    names = list(steps)
    results = []
    for number in range(rounds):
        start = number % len(names)
        seconds = {name: _mean_seconds(steps[name], seconds_at_least, clock) for name in names[start:] + names[:start]}
        results.append({name: seconds[name] for name in names})
        told = ", ".join(f"{name} {seconds[name]:.3g} s" for name in names)
        progress(f"round {number + 1} of {rounds}: {told}")
    return results


def _mean_seconds(step: Callable[[], None], at_least: float, clock: Callable[[], float]) -> float:
    began, count, passed = clock(), 0, 0.0
    while count == 0 or passed < at_least:
        step()
        count, passed = count + 1, clock() - began
    return passed / count


def speedup(rounds: Sequence[Seconds], fast: str, slow: str) -> float:
    """How many times faster one contender is than another: the median over rounds of their ratio in each."""
    return median(seconds[slow] / seconds[fast] for seconds in rounds)
