"""Scores in, verdict out: whether a validation is the best so far, and whether training should stop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Verdict(NamedTuple):
    """What one validation means for the run."""

    improved: bool
    """Strictly better than every validation before it: the checkpoint to keep as `best`."""
    stop: bool
    """`patience` validations in a row brought no progress."""


@dataclass(kw_only=True)
class EarlyStopping:
    """Follows one metric over validations; every rank feeds the same values and so reaches the same verdicts.

    What is best and what counts as progress differ when `min_delta` > 0: a gain below `min_delta` is still the best
    checkpoint, but it does not renew the patience. Small gains add up, since progress is measured from the last
    validation that renewed it.
    """

    mode: Literal["max", "min"] = "max"
    patience: int | None = None
    """Validations without progress until the verdict is to stop, at least 1; None never stops."""
    min_delta: float = 0.0
    """A validation renews the patience if it is better by more than this, in the units of the metric."""
    best: float | None = field(default=None, init=False)
    _reference: float | None = field(default=None, init=False)
    _stale: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        assert self.patience is None or self.patience >= 1, self.patience
        assert self.min_delta >= 0, self.min_delta

    @property
    def stopped(self) -> bool:
        """Whether the validations seen so far say stop; after `load_state` it tells a run that has already stopped."""
        return self.patience is not None and self._stale >= self.patience

    @property
    def patience_left(self) -> int | None:
        """Validations without progress from now on until the verdict is to stop; None never stops."""
        return None if self.patience is None else max(0, self.patience - self._stale)

    def observe(self, value: float) -> Verdict:
        """Take in the metric of the next validation. NaN and infinities are worse than any number."""
        improved = self._is_better(value, self.best, margin=0.0)
        if improved:
            self.best = value
        if self._is_better(value, self._reference, margin=self.min_delta):
            self._reference, self._stale = value, 0
        else:
            self._stale += 1
        return Verdict(improved=improved, stop=self.stopped)

    def state(self) -> dict[str, float | int | None]:
        """What a restart needs, as plain JSON values. Mode, patience and min_delta belong to the recipe."""
        return {"best": self.best, "reference": self._reference, "stale_validations": self._stale}

    def load_state(self, state: Mapping[str, float | int | None]) -> None:
        """Continue from what `state` gave. Patience may have changed meanwhile: a longer one lets a run go on."""
        self.best, self._reference = state["best"], state["reference"]
        self._stale = int(state["stale_validations"] or 0)

    def _is_better(self, value: float, than: float | None, *, margin: float) -> bool:
        if not math.isfinite(value):
            return False
        if than is None:
            return True
        gain = value - than if self.mode == "max" else than - value
        return gain > margin
