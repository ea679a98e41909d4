"""The `export` verb: a copy of a run's export, with its adapters merged into plain Hugging Face checkpoints."""

import argparse
from pathlib import Path
from typing import Any

from shards.progress import say
from trainer.export.run_arguments import check_run


def add_export_parser(verbs: Any) -> None:
    """Add `export`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "export",
        description="Copy the export of a run. With --merge, LoRA adapters become part of the checkpoints that they "
        "adapt, which then load with transformers alone.",
        epilog="duoflow export runs/my_run --out exported",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="a directory that is not there yet")
    parser.add_argument("--merge", action="store_true", help="merge the adapters")
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> int:
    check_run(arguments.run)

    from trainer.export.merge import copy_export  # after the run was found: it imports torch

    for line in copy_export(arguments.run, arguments.out, merge=arguments.merge):
        say(line)
    return 0
