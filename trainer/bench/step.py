"""`duoflow bench step`: training questions per second, grouped against one question per row."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say
from trainer.bench.density import DENSITIES, QUESTIONS_PER_VISIT, questions_of_visits
from trainer.bench.device import bench_device

if TYPE_CHECKING:
    from trainer.bench.measure import Measurement

IMAGES = 2
ROUNDS = 3


def add_parser(subparsers: Any) -> None:
    """Add `bench step`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "step",
        help="training questions per second of the grouped path",
        description="Time training steps of BLIP-base's sizes with random weights: a DIFNet fusion between frozen "
        f"towers, matching and answer loss, {QUESTIONS_PER_VISIT} questions per image; fp32 on a CPU, fp16 on CUDA. "
        "Each path has a process of its own, started in alternation.",
        epilog="duoflow bench step --cached --images 1",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="compare with one question per row through the modules of transformers: losses, gradients, then time",
    )
    parser.add_argument("--cached", action="store_true", help="measure the path over cached tokens too")
    parser.add_argument(
        "--density",
        choices=tuple(DENSITIES),
        help=f"as many questions per image as visits of GQA have at K = {QUESTIONS_PER_VISIT}, grouped, cached, plain",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what computes (default: cuda where there is one)")
    parser.add_argument("--images", metavar="N", type=int, default=IMAGES, help="of a step (default: %(default)s)")
    parser.add_argument("--rounds", metavar="N", type=int, default=ROUNDS, help="of all paths (default: %(default)s)")
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    for option in ("images", "rounds"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option} {getattr(arguments, option)}: expected at least 1")
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    import torch

    from trainer.bench.measure import LARGEST_DIFFERENCE, LARGEST_ROUNDED_LOSS, measure, path_names
    from trainer.bench.workload import Sizes
    from trainer.run_directory import write_json

    device, density = bench_device(arguments.device), arguments.density
    measured = measure(
        Sizes(),
        questions=questions_of_visits(density, arguments.images),
        names=path_names(device, reference=arguments.reference, cached=arguments.cached, density=density is not None),
        device=device,
        dtype=torch.float16 if device.type == "cuda" else torch.float32,
        rounds=arguments.rounds,
        progress=lambda line: say(line, error=True),
    )
    say(table(measured))
    if arguments.json is not None:
        write_json(arguments.json, {**measured.as_json(), "density": density})
    if measured.unequal:
        say(
            f"duoflow: {', '.join(measured.unequal)}: losses or gradients differ from those of the plain path by more "
            f"than {LARGEST_DIFFERENCE:g} (over cached tokens {LARGEST_ROUNDED_LOSS:g}): the times above compare "
            "different computations",
            error=True,
        )
        return 1
    return 0


def table(measured: "Measurement") -> str:
    """The figures for a person: a line per path."""
    from statistics import median

    from trainer.bench.measure import DEFAULTS
    from trainer.bench.paths import DESCRIPTIONS, PLAIN

    about, sizes = measured.circumstances, measured.circumstances["sizes"]
    load = median(timed.load for timings in measured.rounds for timed in timings.values())
    lines = [
        f"one training step: images of {', '.join(map(str, about['questions_per_image']))} questions, "
        f"{sizes['image_size']} pixels; ViT and BERT {sizes['vision_layers']} layers, width {sizes['vision_width']}",
        f"{about['device']}, {about['dtype']}, {about['threads']} threads, torch {about['torch']}; "
        f"medians of {about['rounds']} rounds, each path in a process of its own; load {load:.1f}",
        "",
        f"{'path':<28}{'ms':>10}{'spread':>8}{'user s':>8}{'sys s':>7}{'GB':>6}{'questions/s':>13}{'to plain':>10}"
        f"{'gradients':>11}",
    ]
    for name in measured.names:
        timed = [timings[name] for timings in measured.rounds]
        user, system = median(one.user_seconds for one in timed), median(one.system_seconds for one in timed)
        peak = max(one.peak_bytes for one in timed) / 1e9
        line = (
            f"{name:<28}{measured.milliseconds(name):>10,.1f}{measured.spread(name):>7.0%} {user:>8.1f}{system:>7.1f}"
            f"{peak:>6.1f}{measured.questions_per_second(name):>13,.2f}"
        )
        if PLAIN in measured.names:
            plain = PLAIN + DEFAULTS if name.endswith(DEFAULTS) else PLAIN
            gradients = f"{measured.differences[name]:.1e}" if name in measured.differences else ""
            line += f"{measured.times(name, plain):>9.2f}x{gradients:>11}"
        described = DESCRIPTIONS[name.removesuffix(DEFAULTS)]
        lines.append(f"{line}  {described}{', malloc as the C library has it' if name.endswith(DEFAULTS) else ''}")
    if measured.encoders is not None:
        start = "the pixels" if about["device"] == "cpu" else "the same image tokens"
        found = measured.encoders
        lines += [
            "",
            f"gradients: relative difference to those of plain, fp32, from {start} on",
            f"grouped also: image tokens in fp32 {found.tokens:.1e}, gradients from the pixels on in fp64 "
            f"{found.exact:.1e}",
        ]
    return "\n".join(lines)
