"""What a task brings to `duoflow score`: options of its own, and scores as lines and as JSON."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Scored(NamedTuple):
    """What is said and written about the files of an evaluation."""

    lines: Sequence[str]
    """In the words and with the decimals of the task's official script, where it has one."""
    document: dict[str, Any]
    """Its numbers are under `scores`, unrounded unless --rounded was given."""


class ScoreTask(NamedTuple):
    """A task that can be scored."""

    add_options: Callable[[Any], list[argparse.Action]]
    """Adds the options that no other task takes to a group of the parser, and names them."""
    score: Callable[[argparse.Namespace], Scored]
    """Reads `questions` and `predictions` and what its options name; raises UserError."""
