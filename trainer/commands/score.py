"""`duoflow score`: arguments in, a task's official scores out, as lines and as JSON."""

import argparse
from pathlib import Path
from typing import Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say
from shards.tasks import TASKS as ALL_TASKS
from trainer.scoring.task import ScoreTask
from trainer.tasks import task_named

TASKS: dict[str, ScoreTask] = {name: official for name in ALL_TASKS if (official := task_named(name).official)}
"""Those with official scores."""


def add_score_parser(verbs: Any) -> None:
    """Add `score` to a command's verbs; its `handler` takes the parsed arguments, returns the exit code and raises
    UserError."""
    parser = verbs.add_parser(
        "score",
        description="Score predictions as the official script of GQA, VQA, NLVR2 or SNLI-VE does, LXMERT's own "
        "code, or the framework of MP-DocVQA, and rankings of its pages. See docs/scores.md.",
        epilog="duoflow score --questions val_balanced_questions.json --predictions runs/my_run/predictions/val.json",
    )
    add = parser.add_argument
    add("--task", choices=tuple(TASKS), default="gqa", help="whose files and scores")
    add(
        "--questions",
        metavar="F",
        type=Path,
        nargs="+",
        required=True,
        help="the task's questions, or labelled pairs; of GQA several files, or a directory of them",
    )
    add("--predictions", metavar="F", type=Path, required=True, help="in the task's submission format")
    add("--json", metavar="F", type=Path, help="write the scores to this file as well")
    add("--rounded", action="store_true", help="with --json: numbers with the official script's decimals")
    options = {name: task.add_options(parser.add_argument_group(f"--task {name}")) for name, task in TASKS.items()}
    parser.set_defaults(handler=lambda arguments: _run(arguments, options))


def _run(arguments: argparse.Namespace, options: dict[str, list[argparse.Action]]) -> int:
    """Score, print and, if asked, write."""
    from trainer.run_directory import write_json  # it reads recipes too, which takes a while to import

    _refuse_options_of_others(arguments, options)
    if arguments.rounded and arguments.json is None:
        raise UserError("--rounded is about the file of --json; add --json F, or leave it out")
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    scored = TASKS[arguments.task].score(arguments)
    for line in scored.lines:
        say(line)
    if arguments.json is not None:
        write_json(arguments.json, scored.document)
    return 0


def _refuse_options_of_others(arguments: argparse.Namespace, options: dict[str, list[argparse.Action]]) -> None:
    """Raises:
    UserError: an option was given that another task takes.
    """
    for task, actions in options.items():
        for action in actions:
            if task != arguments.task and getattr(arguments, action.dest) != action.default:
                raise UserError(
                    f"{action.option_strings[0]}: belongs to --task {task}; leave it out of --task {arguments.task}"
                )
