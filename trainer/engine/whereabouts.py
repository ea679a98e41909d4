"""Where the ranks of a run are in what all of them do in the same order, and which of them is late; pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_SPELLED_OUT = 8


class Where(NamedTuple):
    """What a rank does."""

    phase: str = "starting"
    count: int = 0
    """How many phases it has begun: all ranks go through the same ones."""
    since: float = 0.0
    """When it began this one, in the seconds of one clock."""
    waiting: bool = False
    """Whether it waits for other ranks."""


def late_ranks(places: Mapping[int, Where], now: float, *, after: float) -> list[int]:
    """The ranks that others have waited for for more than `after` seconds.

    Late is who has begun fewer phases than those that wait; a rank that is in the same phase as all others, however
    long, keeps nobody waiting.
    """
    furthest = max((where.count for where in places.values()), default=0)
    behind = sorted(rank for rank, where in places.items() if where.count < furthest)
    ahead = [where for rank, where in places.items() if rank not in behind]
    if not behind or any(now - where.since <= after for where in ahead):
        return []
    slowest = min(places[rank].count for rank in behind)
    return [rank for rank in behind if places[rank].count == slowest]


def named(where: Where, now: float) -> str:
    """A phase as a message says it."""
    return f"{where.phase}, for {max(0.0, now - where.since):.0f} s"


def shortened(words: Sequence[str], separator: str = ", ") -> str:
    """A list that stays a line: the first of its words, and how many more there are."""
    more = f" and {len(words) - _SPELLED_OUT} more" if len(words) > _SPELLED_OUT else ""
    return separator.join(words[:_SPELLED_OUT]) + more
