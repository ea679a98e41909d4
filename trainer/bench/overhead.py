"""`duoflow bench overhead`: what the loop, the loader and DeepSpeed add to a bare PyTorch step on the same tensors."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say

if TYPE_CHECKING:
    from trainer.bench.measure_overhead import Overhead

ROUNDS = 15


def add_parser(subparsers: Any) -> None:
    """Add `bench overhead`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "overhead",
        help="what the loop, the loader and DeepSpeed add to a bare PyTorch step",
        description="Train small recipes over drawn images through the whole loop, and beside each step the same one "
        "by hand: forward, backward, clipped gradients, torch's AdamW, on the same tensors. Models of three sizes.",
        epilog="duoflow bench overhead --json overhead.json",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--rounds", metavar="N", type=int, default=ROUNDS, help="steps of each (default: %(default)s)")
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.rounds < 3:
        raise UserError(f"--rounds {arguments.rounds}: expected at least 3")
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from trainer.bench.device import bench_device
    from trainer.bench.measure_overhead import measure_overhead, unequal
    from trainer.run_directory import write_json

    found, about = measure_overhead(
        bench_device(arguments.device), rounds=arguments.rounds, progress=lambda line: say(line, error=True)
    )
    say("\n".join(table(found, about)))
    if arguments.json is not None:
        rows = [entry._asdict() | {"part": entry.part, "gauge_part": entry.gauge_part} for entry in found]
        write_json(arguments.json, {"benchmark": "overhead", **about, "steps": rows})
    if wrong := unequal(found):
        say(f"duoflow: the losses of {', '.join(wrong)} differ between the loop and the bare step", error=True)
        return 1
    return 0


def table(found: Sequence["Overhead"], about: dict[str, Any]) -> list[str]:
    """The figures for a person."""
    return [
        f"{about['device']}, torch {about['torch']}, {about['threads']} threads; medians of {about['rounds']} steps, "
        "the loop's and the bare one in turn",
        "",
        f"{'model':<10}{'ZeRO':>5}{'bare ms':>10}{'loop ms':>10}{'more':>9}{'data':>8}{'host':>8}{'gauge':>9}",
        *(
            f"{row.model:<10}{row.stage:>5}{row.bare_ms:>10.1f}{row.loop_ms:>10.1f}{100 * row.part:>8.1f}%"
            f"{100 * row.data:>7.1f}%{100 * row.host:>7.1f}%{100 * row.gauge_part:>8.2f}%"
            for row in found
        ),
    ]
