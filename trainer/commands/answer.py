"""The `answer` verb: what a run's model says about a photo."""

import argparse
from pathlib import Path
from typing import Any

from shards.progress import say
from trainer.export.run_arguments import add_pipeline_option, check_run


def add_answer_parser(verbs: Any) -> None:
    """Add `answer`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "answer",
        help="ask a run's model about a photo",
        description="Answer a question about a photo with the exported weights of a run, and show where it looked.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="values that the run leaves open, such as model.guidance.*"
    )
    parser.add_argument("--image", required=True, metavar="F", type=Path, help="a photo")
    parser.add_argument("--question", required=True, metavar="TEXT", help="what to ask about it")
    parser.add_argument(
        "--overlay", metavar="F.png", type=Path, help="draw heatmap, points, mask, question and answer over the photo"
    )
    add_pipeline_option(parser)
    parser.set_defaults(handler=_answer)


def _answer(arguments: argparse.Namespace) -> int:
    check_run(arguments.run)

    from trainer.inference.answer import answer_photo  # after the run was found: it imports torch

    answered = answer_photo(
        arguments.run,
        arguments.image,
        arguments.question,
        overlay=arguments.overlay,
        pipeline=arguments.pipeline,
        overrides=arguments.overrides,
    )
    say(f"{answered.text}  ({100 * answered.confidence:.1f} %)")
    if arguments.overlay is not None:
        say(f"drawn: {arguments.overlay}")
    return 0
