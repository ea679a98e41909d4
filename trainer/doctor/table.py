"""What a check found, as rows of a table: each fault in one line, and the commands that mend it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One thing that was looked at."""

    name: str
    """What it is: a key of the recipe, a package, a part of the machine."""
    found: str
    fault: str | None = None
    """What is wrong and the way out, in one line; None if a run can start with what was found."""
    steps: tuple[str, ...] = ()
    """Commands and changes that mend it, in order."""


class Section(NamedTuple):
    """Rows under a title."""

    title: str
    rows: list[Row]


def render(sections: Sequence[Section]) -> str:
    """The table as text; `!` marks what is at fault."""
    width = max((len(row.name) for section in sections for row in section.rows), default=0)
    return "\n".join(line for section in sections for line in _lines(section, width))


def faults(sections: Sequence[Section]) -> list[str]:
    """`name: fault` of every row that has one."""
    return [f"{row.name}: {row.fault}" for section in sections for row in section.rows if row.fault is not None]


def _lines(section: Section, width: int) -> Iterator[str]:
    yield section.title
    for row in section.rows:
        yield f"{' ' if row.fault is None else '!'} {row.name:<{width}}  {row.found}"
        for step in row.steps:
            yield f"  {'':<{width}}    {step}"
