"""Variants of what others prove: their tests are `slow`, and what they need is made when they run."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

STAGES = (0, 1, 2, 3)
"""ZeRO's, for what has to be the same under each of them."""
STAGES_EVERY_DAY = (1, 3)
"""The default, and the one that divides what the others leave whole."""


def with_slow(values: Iterable[object], every_day: Collection[object]) -> list[object]:
    """Parameters of a test, of which those that are not for every day are slow."""
    return [value if value in every_day else pytest.param(value, marks=pytest.mark.slow) for value in values]


def chosen(request: pytest.FixtureRequest, name: str) -> set[Any]:
    """The values of a parameter with which tests of the requesting module are about to run."""
    items = (item for item in request.session.items if item.path == request.path and hasattr(item, "callspec"))
    return {item.callspec.params[name] for item in items if name in item.callspec.params}


def chosen_stages(request: pytest.FixtureRequest) -> list[int]:
    """The stages that tests of the requesting module are about to ask for."""
    return sorted(chosen(request, "stage") or STAGES_EVERY_DAY)
