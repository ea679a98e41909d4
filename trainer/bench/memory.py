"""`duoflow bench memory`: planned against measured memory and step time, over the shapes of the recipes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.progress import say

if TYPE_CHECKING:
    from trainer.bench.measure_memory import Row

WITHIN = 0.15
"""A plan that is further from what was measured is told with exit code 1."""


def add_parser(subparsers: Any) -> None:
    """Add `bench memory`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "memory",
        help="planned against measured memory and step time",
        description="Train a step of models with the recipes' shapes, scaled down, and compare what it takes with what "
        "`duoflow doctor` plans. What gradient checkpointing saves and costs is measured beside it.",
        epilog="duoflow bench memory --json memory.json",
    )
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from trainer.bench.measure_memory import measure_memory
    from trainer.run_directory import write_json

    rows, about = measure_memory(progress=lambda line: say(line, error=True))
    say("\n".join(table(rows, about)))
    if arguments.json is not None:
        told = [row._asdict() | {"memory_error": row.memory_error, "time_error": row.time_error} for row in rows]
        write_json(arguments.json, {"benchmark": "memory", **about, "recipes": told})
    far = [row.recipe for row in rows if abs(row.memory_error) > WITHIN]
    if far:
        say(f"duoflow: {', '.join(far)}: planned memory is more than {WITHIN:.0%} from what was measured", error=True)
        return 1
    return 0


def table(rows: Sequence["Row"], about: dict[str, Any]) -> list[str]:
    """The figures for a person."""
    spared = about["checkpointing"]
    return [
        f"{about['device']}, torch {about['torch']}, {about['threads']} threads; micro-batches of {about['visits']} "
        f"visits; time predicted from {' and '.join(map(str, about['probes']))} visits",
        "",
        f"{'shape of':<18}{'planned MiB':>12}{'measured':>10}{'off':>8}{'predicted ms':>14}{'measured':>10}{'off':>8}",
        *(
            f"{row.recipe:<18}{row.planned_bytes / 2**20:>12.0f}{row.measured_bytes / 2**20:>10.0f}"
            f"{100 * row.memory_error:>+7.1f}%{row.predicted_ms:>14.0f}{row.measured_ms:>10.0f}"
            f"{100 * row.time_error:>+7.1f}%"
            for row in rows
        ),
        "",
        f"model.gradient_checkpointing ({spared['recipe']}), of the layers: activations, forward and backward",
        f"  {'0.0':<6}{spared['bytes'] / 2**20:>8.0f} MiB {spared['ms']:>16.0f} ms",
        *(
            f"  {share:<6}{again['bytes'] / 2**20:>8.0f} MiB ({100 * again['memory']:+.0f} %) {again['ms']:>8.0f} ms "
            f"({100 * again['time']:+.0f} %)"
            for share, again in spared["shares"].items()
        ),
    ]
