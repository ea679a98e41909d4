"""`duoflow bench vlm`: an image read once for all its questions against an image in front of every question."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say
from trainer.bench.device import bench_device

if TYPE_CHECKING:
    from trainer.bench.measure_vlm import VlmMeasurement

PREFIXES = (256, 1024)
QUESTIONS, ROUNDS = 16, 3


def add_parser(subparsers: Any) -> None:
    """Add `bench vlm`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "vlm",
        help="questions per second of a vision-language model, with its image read once and for every question",
        description="Time steps (forward and backward, fp32) and answers of a small Qwen2.5-VL with random weights, "
        "whose questions stand behind one image or each behind an image of its own. Every path has a process of its "
        "own; losses have to be equal.",
        epilog="duoflow bench vlm --prefix 256 --rounds 1",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what computes (default: cuda where there is one)")
    parser.add_argument("--questions", metavar="K", type=int, default=QUESTIONS, help="about the image")
    parser.add_argument(
        "--prefix", metavar="N", type=int, nargs="+", default=PREFIXES, help="tokens of the image, square numbers"
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=ROUNDS, help="medians are taken over so many")
    parser.add_argument(
        "--reference", action="store_true", help="also one conversation, and TRL's SFTTrainer where it is installed"
    )
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    for name in ("questions", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected at least 1")
    for prefix in arguments.prefix:
        if prefix < 4 or round(prefix**0.5) ** 2 != prefix:
            raise UserError(f"--prefix {prefix}: expected a square number of tokens, such as 256 or 1024")
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from trainer.bench.machine import circumstances
    from trainer.bench.measure_vlm import measure_vlm, path_names
    from trainer.bench.vlm_workload import VlmSizes
    from trainer.run_directory import write_json

    device, threads = bench_device(arguments.device), len(os.sched_getaffinity(0))
    measured = []
    for prefix in arguments.prefix:
        found = measure_vlm(
            VlmSizes(questions=arguments.questions, prefix=prefix),
            path_names(reference=arguments.reference),
            rounds=arguments.rounds,
            threads=threads,
            device=device.type,
            report=lambda line: say(line, error=True),
        )
        say(table(found))
        measured.append(found)
    if arguments.json is not None:
        about = circumstances(device) | {"threads": threads}
        write_json(arguments.json, {"circumstances": about, "measured": [found.as_json() for found in measured]})
    return max(_complain(found) for found in measured)


def _complain(measured: "VlmMeasurement") -> int:
    if measured.unequal:
        say(f"duoflow: the losses of {', '.join(measured.unequal)} are not that of rows", error=True)
        return 1
    if not measured.same_answers:
        say("duoflow: answers written together are not those written one by one", error=True)
        return 1
    return 0


def table(measured: "VlmMeasurement") -> str:
    """The figures for a person: a line per path."""
    from statistics import median

    from trainer.bench.measure_vlm import DESCRIPTIONS, ROWS, SHARED
    from trainer.bench.rounds import speedup

    sizes, count = measured.sizes, measured.sizes.questions
    lines = [
        f"{count} questions about an image of {sizes.prefix} tokens; {sizes.layers} layers of width {sizes.width}, "
        f"LoRA rank {sizes.rank}; medians of {len(measured.rounds)} rounds, lowest and highest",
        f"{'path':<14}{'questions/s':>12}{'spread':>18}{'shared is':>12}{'peak MB':>10}  loss",
    ]
    for name, loss in measured.losses.items():
        rates = sorted(count / seconds[name] for seconds in measured.rounds)
        spread = f"{rates[0]:.3g} .. {rates[-1]:.3g}"
        ratio = "" if name == SHARED else f"{measured.times(name):.2f}x"
        peak = f"{measured.peak_bytes[name] / 1e6:,.0f}"
        line = f"{name:<14}{median(rates):>12.3g}{spread:>18}{ratio:>12}{peak:>10}  {loss:.6f}  {DESCRIPTIONS[name]}"
        lines.append(line)
    if measured.writing:
        together, alone = (count / median(seconds[name] for seconds in measured.writing) for name in (SHARED, ROWS))
        lines.append(
            f"answers of {sizes.answer_tokens} tokens: {together:.3g} questions/s together, {alone:.3g} with an image "
            f"each: {speedup(measured.writing, SHARED, ROWS):.2f}x"
        )
    return "\n".join(lines)
