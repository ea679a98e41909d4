"""Variants of what others prove: their tests are `slow`, and what they need is made when they run."""

from collections.abc import Collection, Iterable, Iterator

import pytest


def with_slow(values: Iterable[str], every_day: Collection[str]) -> Iterator[object]:
    """Parameters of a test, of which those that are not for every day are slow."""
    for value in values:
        yield value if value in every_day else pytest.param(value, marks=pytest.mark.slow)


def chosen(request: pytest.FixtureRequest, name: str) -> set[str]:
    """The values of a parameter with which tests of the requesting module are about to run."""
    items = (item for item in request.session.items if item.path == request.path and hasattr(item, "callspec"))
    return {item.callspec.params[name] for item in items if name in item.callspec.params}
