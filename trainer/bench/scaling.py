"""`duoflow bench scaling`: steps over hosts, measured against predicted; and the table of what clusters would take."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say
from trainer.bench.namespaces import check_can_make_hosts, parse_rate

if TYPE_CHECKING:
    from trainer.bench.measure_scaling import Measured, Plan

HOSTS = (1, 2, 4)
RATES = ("10mbit", "20mbit")
"""So slow that what is sent decides, also where ranks wait for a core."""
STAGES = (0, 1)
WIDTH, LAYERS = 512, 8
STEPS, ROUNDS = 2, 3
_MOST_RANKS = 64


def add_parser(subparsers: Any) -> None:
    """Add `bench scaling`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "scaling",
        help="steps over several hosts, measured and predicted",
        description="Time optimizer steps over hosts with links of set rates, and compare them with what the formula "
        "of docs/scaling.md predicts from the same steps without a limit and from collectives by themselves. The hosts "
        "are network namespaces of this machine (root), and their ranks share its cores.",
        epilog="duoflow bench scaling --table",
    )
    parser.add_argument("--hosts", metavar="N,N", type=_numbers, default=HOSTS, help="how many hosts (default: 1,2,4)")
    parser.add_argument("--ranks", metavar="N", type=int, default=1, help="on each host (default: %(default)s)")
    parser.add_argument(
        "--rate", metavar="R,R", type=_rates, default=RATES, help="of each host's link (default: 10mbit,20mbit)"
    )
    parser.add_argument("--stages", metavar="N,N", type=_numbers, default=STAGES, help="of ZeRO (default: 0,1)")
    parser.add_argument(
        "--accumulation", metavar="N,N", type=_numbers, default=(1,), help="micro-batches of a step (default: 1)"
    )
    parser.add_argument("--steps", metavar="N", type=int, default=STEPS, help="in a round (default: %(default)s)")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        default=ROUNDS,
        help="rounds, of which medians are taken (default: %(default)s)",
    )
    parser.add_argument("--table", action="store_true", help="measure nothing: print the table of docs/scaling.md")
    parser.add_argument(
        "--compute-seconds",
        metavar="S",
        type=float,
        help="with --table: forward and backward of a micro-batch on one GPU (default: 0.06)",
    )
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _numbers(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}")
    return tuple(int(part) for part in text.split(","))


def _rates(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    return _predict(arguments) if arguments.table else _measure(arguments)


def _predict(arguments: argparse.Namespace) -> int:
    from trainer.bench.scaling_table import COMPUTE_SECONDS, as_json, predict_clusters, table
    from trainer.run_directory import write_json

    seconds = COMPUTE_SECONDS if arguments.compute_seconds is None else arguments.compute_seconds
    if not 0 < seconds < float("inf"):
        raise UserError(f"--compute-seconds {seconds:g}: expected more than 0")
    predicted = predict_clusters(seconds)
    say(table(predicted))
    if arguments.json is not None:
        write_json(arguments.json, as_json(predicted))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    if arguments.compute_seconds is not None:
        raise UserError("--compute-seconds: belongs to --table; without it, what is computed is measured")
    _check(arguments)

    from trainer.bench.measure_scaling import Plan, measure_scaling
    from trainer.bench.scaling_pool import RankEndedError
    from trainer.run_directory import write_json

    plan = Plan(
        hosts=arguments.hosts,
        ranks_per_host=arguments.ranks,
        rates=arguments.rate,
        stages=arguments.stages,
        accumulations=arguments.accumulation,
        width=WIDTH,
        layers=LAYERS,
        steps=arguments.steps,
        rounds=arguments.rounds,
    )
    try:
        measured = measure_scaling(plan, lambda line: say(line, error=True))
    except RankEndedError as error:
        say(f"duoflow: {error}", error=True)
        return 1
    say(measured_table(plan, measured))
    if arguments.json is not None:
        write_json(arguments.json, {"cases": [case.as_json() for case in measured]})
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for option, values in (
        ("--hosts", arguments.hosts),
        ("--ranks", (arguments.ranks,)),
        ("--accumulation", arguments.accumulation),
        ("--steps", (arguments.steps,)),
        ("--rounds", (arguments.rounds,)),
    ):
        if any(value < 1 for value in values):
            raise UserError(f"{option} {','.join(map(str, values))}: expected at least 1")
    if any(stage not in range(4) for stage in arguments.stages):
        raise UserError(f"--stages {','.join(map(str, arguments.stages))}: expected 0, 1, 2 or 3")
    if max(arguments.hosts) * arguments.ranks > _MOST_RANKS:
        raise UserError(
            f"--hosts x --ranks: {max(arguments.hosts) * arguments.ranks} ranks on one machine; "
            f"expected at most {_MOST_RANKS}"
        )
    for rate in arguments.rate:
        parse_rate(rate)
    if max(arguments.hosts) > 1:
        check_can_make_hosts()


def measured_table(plan: "Plan", measured: Sequence["Measured"]) -> str:
    """The figures for a person: a line per case."""
    parameters = plan.layers * (plan.width * plan.width + plan.width)
    lines = [
        f"{parameters:,} trained parameters, fp32, gloo; {plan.ranks_per_host} rank(s) a host, "
        f"{len(os.sched_getaffinity(0))} cores for all of them",
        f"medians of {plan.rounds} rounds of {plan.steps} steps; predicted: the step without a limit, and what it "
        "sends at the rates of an all-reduce and of an all-gather by themselves",
        "",
        f"{'hosts':>5}{'stage':>7}{'micro':>7}{'rate':>10}{'reduce':>8}{'gather':>8}{'MB sent':>9}{'formula':>9}"
        f"{'s/step':>9}{'spread':>8}{'predicted':>11}{'ratio':>7}",
    ]
    for found in measured:
        case, seconds = found.case, median(found.seconds)
        spread = (max(found.seconds) - min(found.seconds)) / seconds
        line = f"{case.hosts:>5}{case.stage:>7}{case.accumulation:>7}{case.rate or 'no limit':>10}"
        line += _rates_of(found)
        line += f"{found.sent_bytes / 1e6:>9.2f}{found.predicted_bytes / 1e6:>9.2f}{seconds:>9.3f}{spread:>8.0%}"
        lines.append(line + (f"{found.predicted_seconds:>11.3f}{found.ratio:>7.2f}" if case.rate else ""))
    return "\n".join(lines)


def _rates_of(found: "Measured") -> str:
    """Mbit/s of an all-reduce and of an all-gather."""
    if found.link is None:
        return f"{'':>16}"
    megabits = found.link.bytes_per_second * 8e-6
    return f"{megabits:>8.1f}{megabits * found.link.gather_share:>8.1f}"
