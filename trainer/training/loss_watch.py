"""Looks for a loss that cannot learn, early in a run, and names the likely cause."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

FIRST_STEPS = 100
"""Optimizer steps that are watched: mistakes of a recipe show at once, and a converged loss may well be flat."""
SAME_STEPS = 20
"""Steps in a row over which a loss part must be the same to be reported."""
PAIR_STEPS = 3
"""Steps over which the texts of matching are counted: a small one may well have none that is wrong."""
RELATIVE_TOLERANCE = 1e-6
"""About eight times the spacing of fp32: a sum that only differs in its rounding is the same."""


class _Run(NamedTuple):
    """Steps in a row with one value."""

    value: float
    length: int


@dataclass
class LossWatch:
    """Watches the first steps of a run. Feed it values of the global step; each warning is given once."""

    _runs: dict[str, _Run] = field(default_factory=dict, init=False)
    _given: set[str] = field(default_factory=set, init=False)
    _pairs: list[tuple[int, int]] = field(default_factory=list, init=False)
    """Of each step: texts that belong to their image, and texts that do not."""

    def observe(
        self,
        step: int,
        parts: Mapping[str, float],
        *,
        positives: int | None = None,
        negatives: int | None = None,
    ) -> list[str]:
        """Warnings that this step gives cause for, each one line; usually none.

        Args:
            step: optimizer steps taken, this one included, over the whole run.
            parts: each part of the loss by its short name (answer, itm).
            positives, negatives: (image, text) pairs of the matching loss with weight, over all ranks; None without it.
        """
        if step > FIRST_STEPS:
            return []
        warnings = []
        for part, value in parts.items():
            if self._follow(part, value) >= SAME_STEPS and self._first_time(part):
                warnings.append(_same_value(part, value))
        if positives is not None and negatives is not None and len(self._pairs) < PAIR_STEPS:
            self._pairs.append((positives, negatives))
            if len(self._pairs) == PAIR_STEPS:
                only = _only_class(sum(right for right, _ in self._pairs), sum(wrong for _, wrong in self._pairs))
                warnings += [] if only is None else [only]
        return warnings

    def _follow(self, part: str, value: float) -> int:
        run = self._runs.get(part)
        if run is not None and math.isclose(value, run.value, rel_tol=RELATIVE_TOLERANCE):
            run = _Run(run.value, run.length + 1)
        else:
            run = _Run(value, 1)
        self._runs[part] = run
        return run.length if math.isfinite(value) else 0

    def _first_time(self, subject: str) -> bool:
        first = subject not in self._given
        self._given.add(subject)
        return first


def _same_value(part: str, value: float) -> str:
    return (
        f"{part}_loss is {value:.6g} for {SAME_STEPS} steps: the model gives the same output for every input, or every "
        "step has the same questions and optim.lr is too low for a weight to move"
    )


def _only_class(positives: int, negatives: int) -> str | None:
    if (positives == 0) == (negatives == 0):
        return None
    if negatives == 0:
        return (
            f"all {positives} texts of the matching loss in {PAIR_STEPS} steps belong to their image, so it learns to "
            "always say yes: no negatives exist for this data (losses.negatives names the kinds that are tried)"
        )
    return (
        f"none of the {negatives} texts of the matching loss in {PAIR_STEPS} steps belongs to its image, so it learns "
        "to always say no: the questions have no answers"
    )
