"""`duoflow bench all`: the benchmarks that tell what a machine can do, one behind the other."""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shards.atomic import check_writable
from shards.progress import say

BENCHMARKS = ("step", "loader", "shards", "overhead", "memory")
"""In this order; each is a `duoflow bench` of that name that takes --json."""


def add_parser(subparsers: Any) -> None:
    """Add `bench all`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "all",
        help=f"{', '.join(BENCHMARKS)}: one behind the other",
        description=f"Run {', '.join(f'`bench {name}`' for name in BENCHMARKS)}, each in a process of its own.",
        epilog="duoflow bench all --json figures",
    )
    parser.add_argument("--json", metavar="DIR", type=Path, help="write the figures of each to DIR/NAME.json")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.json is not None:
        arguments.json.mkdir(parents=True, exist_ok=True)
        for name in BENCHMARKS:
            check_writable("--json", arguments.json / f"{name}.json")
    worst = 0
    for name in BENCHMARKS:
        kept = [] if arguments.json is None else ["--json", str(arguments.json / f"{name}.json")]
        say(f"\n$ duoflow bench {' '.join([name, *kept])}")
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "trainer.cli", "bench", name, *kept], check=False).returncode
        say(f"bench {name}: exit code {code} after {time.monotonic() - began:.0f} s")
        worst = max(worst, code)
    return worst
