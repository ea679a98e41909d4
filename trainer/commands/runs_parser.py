"""The `runs` verb: which runs there are, and two of them compared."""

import argparse
from pathlib import Path
from typing import Any

from trainer.commands.watch import RUNS


def add_runs_parser(verbs: Any) -> None:
    """Add `runs`; its namespaces carry `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "runs",
        description="A table of the runs in a directory: state, step, the best validation and the time that training "
        "took. `compare` holds two of them against each other.",
        epilog="duoflow runs\nduoflow runs --directory runs --json\nduoflow runs compare runs/my_run runs/slower",
    )
    parser.add_argument("--directory", metavar="DIR", type=Path, default=RUNS, help="where runs lie (run.directory)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=_list)
    kinds = parser.add_subparsers(metavar="compare")
    compare = kinds.add_parser(
        "compare",
        help="two runs: where their recipes differ, and their metrics",
        description="The keys in which the recipes of two runs differ, and the metrics of the best validation of each.",
        epilog="duoflow runs compare runs/my_run runs/slower --json",
    )
    compare.add_argument("first", metavar="A", type=Path, help="a run's directory, such as runs/NAME")
    compare.add_argument("second", metavar="B", type=Path, help="the other one")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(handler=_compare)


def _list(arguments: argparse.Namespace) -> int:
    from trainer.commands.runs import list_runs  # here and below: it reads recipes, which takes a while to import

    return list_runs(arguments.directory, as_json=arguments.json)


def _compare(arguments: argparse.Namespace) -> int:
    from trainer.commands.runs import compare_runs

    return compare_runs(arguments.first, arguments.second, as_json=arguments.json)
