"""What an index counts about items; a tally of parts is the sum of their tallies."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from shards.format.records import Item, Kind


class Summary(NamedTuple):
    """The tables of an index."""

    questions: int
    answered: int
    answers: dict[str, int]
    groups: dict[str, dict[str, int]]
    types: dict[str, dict[str, int]]


def tally(items: Iterable[Item]) -> Counter[Kind]:
    """Count items by kind."""
    return Counter(item.kind for item in items)


def summarise(kinds: Counter[Kind]) -> Summary:
    """The tables of an index from a tally. A group's answers count only questions that have an answer."""
    answers: Counter[str] = Counter()
    groups: dict[str, Counter[str]] = {}
    types: dict[str, Counter[str]] = {}
    for kind, count in kinds.items():
        if kind.answer is not None:
            answers[kind.answer] += count
            if kind.group is not None:
                groups.setdefault(kind.group, Counter())[kind.answer] += count
        for classification, name in kind.types:
            table = types.setdefault(classification, Counter())
            if name is not None:
                table[name] += count
    return Summary(
        questions=kinds.total(),
        answered=answers.total(),
        answers=dict(answers),
        groups={name: dict(table) for name, table in groups.items()},
        types={name: dict(table) for name, table in types.items()},
    )
