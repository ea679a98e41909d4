"""What an index counts about questions; a tally of parts is the sum of their tallies."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from shards.format.records import Question


class Kind(NamedTuple):
    """What is counted: questions that agree in all of these count as equal."""

    answer: str | None
    group: str | None
    structural: str | None
    semantic: str | None


class Summary(NamedTuple):
    """The tables of an index."""

    questions: int
    answered: int
    answers: dict[str, int]
    groups: dict[str, dict[str, int]]
    types: dict[str, dict[str, int]]


def tally(questions: Iterable[Question]) -> Counter[Kind]:
    """Count questions by kind."""
    return Counter(
        Kind(question.answer, question.groups.global_, question.types.structural, question.types.semantic)
        for question in questions
    )


def summarise(kinds: Counter[Kind]) -> Summary:
    """The tables of an index from a tally. A group's answers count only questions that have an answer."""
    answers: Counter[str] = Counter()
    groups: dict[str, Counter[str]] = {}
    types: dict[str, Counter[str]] = {"structural": Counter(), "semantic": Counter()}
    for kind, count in kinds.items():
        if kind.answer is not None:
            answers[kind.answer] += count
            if kind.group is not None:
                groups.setdefault(kind.group, Counter())[kind.answer] += count
        for table in types:
            if (name := getattr(kind, table)) is not None:
                types[table][name] += count
    return Summary(
        questions=kinds.total(),
        answered=answers.total(),
        answers=dict(answers),
        groups={name: dict(table) for name, table in groups.items()},
        types={name: dict(table) for name, table in types.items()},
    )
