"""`duoflow bench step`: training questions per second, grouped against one question per row."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say
from trainer.bench.device import bench_device

if TYPE_CHECKING:
    from trainer.bench.measure import Measurement

IMAGES = 2
QUESTIONS_PER_IMAGE = 16
ROUNDS = 5


def add_parser(subparsers: Any) -> None:
    """Add `bench step`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "step",
        help="training questions per second of the grouped path",
        description="Time training steps of BLIP-base's sizes with random weights: a DIFNet fusion between frozen "
        f"towers, matching and answer loss, {QUESTIONS_PER_IMAGE} questions per image; fp32 on a CPU, fp16 on CUDA.",
        epilog="duoflow bench step --images 1",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="compare with one question per row through the modules of transformers: gradients, then time",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what computes (default: cuda where there is one)")
    parser.add_argument("--images", metavar="N", type=int, default=IMAGES, help="of a step (default: %(default)s)")
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.images < 1:
        raise UserError(f"--images {arguments.images}: expected at least 1")

    if arguments.json is not None:
        check_writable("--json", arguments.json)

    import torch

    from trainer.bench.measure import LARGEST_DIFFERENCE, measure
    from trainer.bench.workload import Sizes
    from trainer.run_directory import write_json

    device = bench_device(arguments.device)
    measured = measure(
        Sizes(),
        images=arguments.images,
        questions_per_image=QUESTIONS_PER_IMAGE,
        with_reference=arguments.reference,
        device=device,
        dtype=torch.float16 if device.type == "cuda" else torch.float32,
        rounds=ROUNDS,
        progress=lambda line: say(line, error=True),
    )
    say(table(measured))
    if arguments.json is not None:
        write_json(arguments.json, measured.as_json())
    if measured.unequal:
        say(
            f"duoflow: the gradients of {', '.join(measured.unequal)} differ from those of the plain path by more than "
            f"{LARGEST_DIFFERENCE:g}: the times above compare different computations",
            error=True,
        )
        return 1
    return 0


def table(measured: "Measurement") -> str:
    """The figures for a person: a line per path."""
    from trainer.bench.paths import DESCRIPTIONS, PLAIN
    from trainer.bench.rounds import speedup

    about, sizes = measured.circumstances, measured.circumstances["sizes"]
    lines = [
        f"one training step: {about['images']} images of {about['questions_per_image']} questions, "
        f"{sizes['image_size']} pixels; ViT and BERT {sizes['vision_layers']} layers, width {sizes['vision_width']}",
        f"{about['device']}, {about['dtype']}, {about['threads']} threads, torch {about['torch']}; "
        f"medians of {about['rounds']} rounds",
        "",
        f"{'path':<20}{'ms':>10}{'questions/s':>13}{'to plain':>10}{'gradients':>11}",
    ]
    for name in measured.losses:
        line = f"{name:<20}{measured.milliseconds(name):>10,.1f}{measured.questions_per_second(name):>13,.2f}"
        if PLAIN in measured.losses:
            line += f"{speedup(measured.rounds, name, PLAIN):>9.2f}x{measured.differences[name]:>11.1e}"
        lines.append(f"{line}  {DESCRIPTIONS[name]}")
    if PLAIN in measured.losses:
        start = "the pixels" if about["device"] == "cpu" else "the same image tokens"
        found = measured.encoders
        lines += [
            "",
            f"gradients: relative difference to those of plain, fp32, from {start} on",
            f"grouped also: image tokens in fp32 {found.tokens:.1e}, gradients from the pixels on in fp64 "
            f"{found.exact:.1e}",
        ]
    return "\n".join(lines)
