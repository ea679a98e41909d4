"""`duoflow tasks`: every task with its formats, losses, metrics and a recipe to begin with, as a table or as JSON."""

import argparse
from pathlib import Path
from typing import Any

from model.config import LossConfig
from shards.atomic import check_writable
from shards.progress import say
from shards.tasks import TASKS
from trainer.columns import aligned
from trainer.tasks import task_named

COLUMNS = ("task", "formats", "losses", "metrics", "recipe")


def add_tasks_parser(verbs: Any) -> None:
    """Add `tasks` to a command's verbs; its `handler` takes the parsed arguments and returns the exit code."""
    parser = verbs.add_parser(
        "tasks",
        description="A row for every task: the formats of its data, its losses (in brackets those that weigh nothing "
        "unless a recipe says so), what it measures, and a recipe to begin with.",
        epilog="duoflow tasks --json tasks.json",
    )
    parser.add_argument("--json", metavar="O", type=Path, help="write the table to this file as well")
    parser.set_defaults(handler=_run)


def task_rows() -> list[dict[str, Any]]:
    """A row for every task; a loss that has no weight unless a recipe gives it one stands there with 0."""
    rows = []
    for name, data in TASKS.items():
        task = task_named(name)
        losses = {part: data.losses.get(part, 0.0) for part in data.reads}
        weighted = LossConfig().model_copy(update=losses)
        rows.append(
            {
                "task": name,
                "formats": list(data.formats),
                "losses": losses,
                "metrics": list(task.metrics(weighted)),
                "recipe": task.recipe,
            }
        )
    return rows


def _run(arguments: argparse.Namespace) -> int:
    from trainer.run_directory import write_json  # it reads recipes too, which takes a while to import

    if arguments.json is not None:
        check_writable("--json", arguments.json)
    rows = task_rows()
    for line in aligned([COLUMNS, *(tuple(_cell(row[column]) for column in COLUMNS) for row in rows)]):
        say(line)
    if arguments.json is not None:
        write_json(arguments.json, rows)
    return 0


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(name if weight else f"({name})" for name, weight in value.items())
    if isinstance(value, list):
        plain = [name for name in value if "/" not in name]
        more = len(value) - len(plain)
        return ", ".join(plain) + (f", {more} by type" if more else "")
    return str(value)
