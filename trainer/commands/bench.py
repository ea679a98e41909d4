"""The `bench` verb: what there is to be measured."""

from typing import Any

from trainer.bench import answer, every, loader, memory, overhead, scaling, shards, step, vlm


def add_bench_parser(verbs: Any) -> None:
    """Add `bench`; the namespaces of its kinds carry `handler`: namespace -> exit code."""
    bench = verbs.add_parser(
        "bench", description="Measure; one table, one JSON.", epilog="duoflow bench scaling --table --json figures.json"
    )
    kinds = bench.add_subparsers(metavar="WHAT", required=True)
    for kind in (step, loader, shards, answer, scaling, vlm, overhead, memory, every):
        kind.add_parser(kinds)
