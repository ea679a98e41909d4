"""Predictions are scored together: a file has one for every item, or is refused."""

from collections.abc import Collection
from pathlib import Path

from shards.errors import DataError


def refuse_missing(
    path: Path, found: Collection[int | str], items: Collection[int | str], what: str, kind: str, remedy: str
) -> None:
    """Say how many items a file lacks, and the first of them.

    Args:
        path: the file.
        found: those of the items that it speaks of.
        what: it should have of each, for the message, like the next two: "prediction".
        kind: of the items: "pairs".
        remedy: what to do about it.

    Raises:
        DataError: one of the items is not among the found.
    """
    without = next((item for item in items if item not in found), None)
    if without is not None:
        raise DataError(
            f"{path}: no {what} for {len(items) - len(found):,} of {len(items):,} {kind}, such as {without!r}; {remedy}"
        )
