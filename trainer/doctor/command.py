"""`duoflow doctor [RECIPE]`: a table of what is there, and exit code 2 with a line for each thing that is missing.

With `--hostfile` the table is of the hosts.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import UserError
from shards.progress import doing, say
from trainer.doctor.table import Row, Section, faults, render

if TYPE_CHECKING:
    from trainer.config import RunConfig


def add_doctor_parser(verbs: Any) -> None:
    """Add the `doctor` verb; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "doctor",
        description="Look at packages, GPUs, memory and disk, and start DeepSpeed once. With a recipe, look also for "
        "its weights and shards, print the commands that get what is missing, and plan its memory. Asks no network.",
        epilog="duoflow doctor\nduoflow doctor recipes/easyvqa.yaml --json",
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", type=Path, help="YAML file, or the config.yaml of a run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values to change, as for duoflow train")
    parser.add_argument(
        "--hostfile", metavar="F", type=Path, help="look at the hosts of this file instead, all at once, and compare"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; faults are in it, and on stderr as always")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.hostfile is not None:
        return _run_over_hosts(arguments)
    if arguments.recipe is not None and not arguments.recipe.is_file():
        _load(arguments.recipe, arguments.overrides)  # says so at once
    with doing("looking at this machine; DeepSpeed is started once, which takes some seconds"):
        sections = examine(arguments.recipe, arguments.overrides)
    found = faults(sections)
    say(_as_json(sections) if arguments.json else render(sections))
    if found:
        raise UserError("\n".join(found))
    if not arguments.json:
        say(f"{arguments.recipe or 'this machine'}: nothing is missing")
    return 0


def _load(recipe: Path, overrides: Sequence[str]) -> "RunConfig":
    from trainer.config import load_config  # pydantic

    return load_config(recipe, overrides)


def _run_over_hosts(arguments: argparse.Namespace) -> int:
    from trainer.doctor.nodes import examine_hosts

    config = None if arguments.recipe is None else _load(arguments.recipe, arguments.overrides)
    lines, found = examine_hosts(arguments.hostfile, config)
    if arguments.json:
        say(json.dumps({"hosts": lines, "faults": found}, indent=1, ensure_ascii=False))
    else:
        say("\n".join(lines))
    if found:
        raise UserError("\n".join(found))
    if not arguments.json:
        say(f"{arguments.hostfile}: the hosts have everything in common that a run needs")
    return 0


def _as_json(sections: Sequence[Section]) -> str:
    tables = [{"title": section.title, "rows": [row._asdict() for row in section.rows]} for section in sections]
    return json.dumps({"sections": tables, "faults": faults(sections)}, indent=1, ensure_ascii=False)


def examine(recipe: Path | None, overrides: Sequence[str] = ()) -> list[Section]:
    """Everything that the table shows."""
    from trainer.doctor.machine import machine_rows
    from trainer.doctor.packages import package_rows

    sections = [Section("machine", machine_rows()), Section("packages", package_rows())]
    if recipe is not None:
        of_recipe = Section(f"recipe {recipe}", _recipe_rows(recipe, overrides))
        sections.append(of_recipe)
        if not faults([of_recipe]):
            sections.append(Section("memory", _memory_rows(recipe, overrides)))
    return sections


def _memory_rows(recipe: Path, overrides: Sequence[str]) -> list[Row]:
    from trainer.doctor.memory import memory_rows  # it loads the model

    return memory_rows(_load(recipe, overrides))


def _recipe_rows(recipe: Path, overrides: Sequence[str]) -> list[Row]:
    try:
        config = _load(recipe, overrides)
    except UserError as error:
        return [Row("recipe", line, line) for line in str(error).splitlines()]
    try:
        from trainer.doctor.recipe import recipe_rows  # imports torch
    except ImportError as error:
        return [Row("recipe", f"not looked at: {error}", f"not looked at ({error}); install the packages first")]
    return recipe_rows(config)
