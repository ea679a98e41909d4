"""`duoflow bench loader`: what a core spends on a visit, and how much of it is decoding its image."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say

if TYPE_CHECKING:
    from trainer.bench.measure_loader import LoaderMeasurement

QUESTIONS = (13, 193)
"""An image: GQA's balanced questions, and all of them."""
IMAGES, ROUNDS, SIZE = 400, 5, 384


def add_parser(subparsers: Any) -> None:
    """Add `bench loader`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "loader",
        help="milliseconds of one core per visit, beside those of decoding its image",
        description="Time micro-batches of synthesised photographs with questions of GQA's length and number, prepared "
        "by one core, against a bare loop that decodes and resizes the same JPEGs from memory. Every way has its turn "
        "in every round.",
        epilog="duoflow bench loader --images 64 --rounds 1 --questions 13",
    )
    parser.add_argument(
        "--questions", metavar="N", type=int, nargs="+", default=QUESTIONS, help="of an image (default: 13 193)"
    )
    parser.add_argument("--images", metavar="N", type=int, default=IMAGES, help="how many (default: %(default)s)")
    parser.add_argument("--resize", metavar="N", type=int, help="of the shards, as of `shards build` (default: none)")
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=ROUNDS, help="medians are taken over so many (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    for name, values in (
        ("questions", arguments.questions),
        ("images", [arguments.images]),
        ("rounds", [arguments.rounds]),
    ):
        if min(values) < 1:
            raise UserError(f"--{name} {min(values)}: expected at least 1")
    if arguments.images < 64:
        raise UserError(f"--images {arguments.images}: expected at least 64, so that a step has other ones")
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    import torch

    from trainer.bench.machine import circumstances
    from trainer.bench.measure_loader import measure_loader
    from trainer.run_directory import write_json

    measured = []
    for questions in arguments.questions:
        with tempfile.TemporaryDirectory(prefix="bench.") as scratch:
            found = measure_loader(
                Path(scratch) / "shards",
                images=arguments.images,
                questions_per_image=questions,
                resize=arguments.resize,
                image_size=SIZE,
                rounds=arguments.rounds,
                report=lambda line: say(line, error=True),
            )
        say(table(found))
        measured.append(found)
    if arguments.json is not None:
        about = {"benchmark": "loader", **circumstances(torch.device("cpu")), "threads": 1}
        write_json(arguments.json, about | {"measured": [found.as_json() for found in measured]})
    return 0


def table(measured: "LoaderMeasurement") -> str:
    """The figures for a person: a line per way."""
    from trainer.bench.measure_loader import BARE, DESCRIPTIONS

    lines = [
        f"{measured.questions_per_image} questions an image, {measured.questions_per_visit:.1f} a visit, JPEGs of "
        f"{measured.jpeg_bytes / 1e3:.0f} kB; one core, medians of {len(measured.rounds)} rounds, lowest and highest",
        f"{'way':<12}{'ms/visit':>10}{'spread':>18}{'of decoding':>13}",
    ]
    for name, what in DESCRIPTIONS.items():
        low, middle, high = measured.milliseconds(name)
        share = "" if name == BARE else f"{measured.share_of_decoding(name):.2f}"
        lines.append(f"{name:<12}{middle:>10.2f}{f'{low:.2f} .. {high:.2f}':>18}{share:>13}  {what}")
    return "\n".join(lines)
