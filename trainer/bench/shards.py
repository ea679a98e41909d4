"""`duoflow bench shards`: reading and grouping annotations, and what an index costs a process that trains."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable
from shards.errors import UserError
from shards.progress import say

if TYPE_CHECKING:
    from trainer.bench.measure_shards import Grouped, Opened

CHUNK_BYTES = 150_000_000
INDEX_IMAGES, INDEX_QUESTIONS = 1_000_000, 50


def add_parser(subparsers: Any) -> None:
    """Add `bench shards`; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "shards",
        help="time and memory of reading annotations, and of opening an index",
        description="Read and group synthesised chunks of GQA's annotations as `shards build` does, in a process of "
        "its own whose memory is watched; then open an index of many images and go to steps of its epoch.",
        epilog="duoflow bench shards --bytes 2000000 --index-images 10000",
    )
    parser.add_argument("--chunks", metavar="N", type=int, default=1, help="question files (default: %(default)s)")
    parser.add_argument(
        "--bytes", metavar="N", type=int, default=CHUNK_BYTES, help="of each; GQA's have 1.5e9 (default: %(default)s)"
    )
    parser.add_argument(
        "--index-images", metavar="N", type=int, default=INDEX_IMAGES, help="of the index (default: %(default)s)"
    )
    parser.add_argument(
        "--index-questions", metavar="N", type=int, default=INDEX_QUESTIONS, help="an image (default: %(default)s)"
    )
    parser.add_argument("--scratch", metavar="DIR", type=Path, help="where the files go (default: a temporary one)")
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to this file as well")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    for name in ("chunks", "bytes", "index_images", "index_questions"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: expected at least 1")
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    if arguments.scratch is not None and not arguments.scratch.is_dir():
        raise UserError(f"--scratch {arguments.scratch}: is no directory")

    import torch

    from trainer.bench.machine import circumstances
    from trainer.bench.measure_shards import measure_grouping, measure_opening
    from trainer.run_directory import write_json

    with tempfile.TemporaryDirectory(prefix="bench.", dir=arguments.scratch) as scratch:
        grouped = measure_grouping(Path(scratch), arguments.chunks, arguments.bytes, lambda line: say(line, error=True))
        say(grouping_table(grouped))
        opened = measure_opening(Path(scratch), arguments.index_images, arguments.index_questions)
        say(opening_table(opened))
    if arguments.json is not None:
        figures = {"grouped": grouped._asdict(), "opened": opened._asdict()}
        write_json(arguments.json, {"benchmark": "shards", **circumstances(torch.device("cpu")), **figures})
    return 0


def grouping_table(measured: "Grouped") -> str:
    """The figures for a person."""
    return "\n".join(
        [
            f"annotations: {measured.questions:,} questions on {measured.images:,} images, "
            f"{measured.annotation_bytes / 1e9:.2f} GB in {measured.chunks} files",
            f"  read and grouped    {_rate(measured.questions, measured.read_seconds)}",
            f"  gone through sorted {_rate(measured.questions, measured.walk_seconds)}",
            f"  on disk             {measured.table_bytes / 1e9:10.2f} GB",
            f"  resident at most    {measured.peak_bytes / 1e6:10.0f} MB, all processes together",
        ]
    )


def _rate(questions: int, seconds: float) -> str:
    return f"{seconds:10.1f} s{questions / seconds:12,.0f}/s"


def opening_table(measured: "Opened") -> str:
    """The figures for a person."""
    return "\n".join(
        [
            f"index: {measured.images:,} images, {measured.questions:,} questions; columns of "
            f"{measured.columns_bytes / 1e9:.2f} GB",
            f"  opened, visits counted {1000 * measured.open_seconds:9.0f} ms",
            f"  order of an epoch      {1000 * measured.order_seconds:9.1f} ms",
            f"  its first step         {1000 * measured.first_step_seconds:9.0f} ms, 64 lanes of 512 visits",
            f"  seek to its middle     {1000 * measured.seek_seconds:9.0f} ms",
            f"  a further step         {1000 * measured.step_seconds:9.1f} ms",
            f"  sent to a worker       {measured.sent_bytes / 1e3:9.0f} kB",
            f"  memory beyond the file {measured.own_bytes / 1e6:9.0f} MB",
        ]
    )
