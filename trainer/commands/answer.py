"""The `answer` verb: what a run's model says about photos."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError
from shards.progress import say
from trainer.config import load_run_config
from trainer.export.run_arguments import add_pipeline_option, check_run
from trainer.run_directory import RunDirectory

if TYPE_CHECKING:
    from trainer.reporting.overlays import Answered  # it imports torch


def add_answer_parser(verbs: Any) -> None:
    """Add `answer`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "answer",
        description="Answer a question about photos with the exported weights of a run, and show where it looked.",
        epilog='duoflow answer runs/my_run --image photos/01.jpg --question "What colour is the shape?"\n'
        "duoflow answer runs/my_run --questions rows.csv --images photos",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME, or an export")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="values that the run leaves open, such as model.guidance.*"
    )
    parser.add_argument(
        "--image",
        default=[],
        metavar="F",
        type=Path,
        nargs="+",
        help="a photo, or several, each of which is asked about; a vision-language model takes them together, such as "
        "the pages of a document, and a model of two images takes two",
    )
    parser.add_argument(
        "--shards", metavar="DIR", help="shards of documents whose words a reader (model.reader) answers from"
    )
    parser.add_argument("--document", metavar="ID", help="the document in --shards that is asked about")
    parser.add_argument("--question", metavar="TEXT", help="what to ask about it")
    parser.add_argument(
        "--questions", metavar="F", type=Path, help="a table of images and questions instead: CSV, TSV or JSON"
    )
    parser.add_argument(
        "--images", metavar="DIR", type=Path, help="where the images of --questions lie; else beside the table"
    )
    parser.add_argument("--out", metavar="F.csv", type=Path, help="write the answers to --questions here; else stdout")
    parser.add_argument(
        "--overlay",
        metavar="F.png",
        type=Path,
        help="draw heatmap, points, mask, question and answer over the photo; for several photos, a directory",
    )
    add_pipeline_option(parser)
    parser.set_defaults(handler=_answer)


def _answer(arguments: argparse.Namespace) -> int:
    _check_asked(arguments)
    check_run(arguments.run)
    model = load_run_config(RunDirectory(arguments.run).config).model
    if model.retrieval is not None:
        raise ConfigError(
            f"{arguments.run}: ranks pages and writes no answers; `duoflow evaluate` ranks those of a split, and "
            "data.retrieved lets a run of task mpdocvqa read them"
        )
    if model.reader is not None:
        if arguments.questions is not None:
            raise ConfigError(f"--questions: {arguments.run} reads words of documents, and looks at no photo")
        return _ask_reader(arguments)
    for option in ("shards", "document"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option}: {arguments.run} looks at photos; name one in --image instead")
    if arguments.questions is not None:
        return _ask_table(arguments)
    if not arguments.image:
        raise ConfigError("--image: is not given; name a photo to ask about")
    if model.vlm is not None:
        answered = _ask_vlm(arguments)
        _tell(answered, where="" if answered.photo is None else f"  on {arguments.image[answered.photo]}")
        return 0
    _ask_fusion(arguments)
    return 0


def _tell(answered: "Answered", about: str = "", where: str = "") -> None:
    say(f"{about}{answered.text}  ({100 * answered.confidence:.1f} %){where}")
    for note in answered.notes:
        say(f"{about}note: {note}", error=True)


def _check_asked(arguments: argparse.Namespace) -> None:
    if arguments.questions is None:
        if arguments.question is None:
            raise ConfigError("--question: is not given; ask something, or name a table of questions in --questions")
        for option in ("images", "out"):
            if getattr(arguments, option) is not None:
                raise ConfigError(f"--{option}: goes with --questions; leave it out")
        return
    for option in ("image", "question", "overlay"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option}: has no effect beside --questions; leave one of them out")
    if arguments.pipeline != "direct":
        raise ConfigError("--pipeline pnp: answers one question at a time; leave it out, or ask with --question")


def _ask_table(arguments: argparse.Namespace) -> int:
    from trainer.inference.many import answer_table  # after the run was found: it imports torch

    text = answer_table(
        arguments.run,
        arguments.questions,
        images=arguments.images,
        out=arguments.out,
        overrides=arguments.overrides,
    )
    say(f"written: {arguments.out}" if text is None else text.rstrip("\n"))
    return 0


def _ask_reader(arguments: argparse.Namespace) -> int:
    run = arguments.run
    for option in ("image", "overlay", "overrides"):
        if getattr(arguments, option):
            said = "key=value" if option == "overrides" else f"--{option}"
            raise ConfigError(
                f"{said}: has no effect on {run}, which reads words; use --shards DIR --document ID alone"
            )
    if arguments.pipeline != "direct":
        raise ConfigError(f"--pipeline pnp: needs a trained fusion, and {run} reads words; leave it out")
    for option in ("shards", "document"):
        if getattr(arguments, option) is None:
            raise ConfigError(f"--{option}: is not given, and {run} reads the words of a document of shards; name it")

    from trainer.inference.documents import answer_document  # after the run was found: it imports torch

    found = answer_document(run, arguments.shards, arguments.document, arguments.question)
    where = "" if found.page is None else f"  on {found.page}"
    say(f"{found.answered.text}  ({100 * found.answered.confidence:.1f} %){where}")
    return 0


def _ask_vlm(arguments: argparse.Namespace) -> "Answered":
    if arguments.overlay is not None or arguments.pipeline != "direct":
        option = "--overlay" if arguments.overlay is not None else "--pipeline pnp"
        raise ConfigError(
            f"{option}: needs a trained fusion, and {arguments.run} is a vision-language model; leave it out"
        )

    from trainer.inference.pages import answer_pages  # after the run was found: it imports torch

    return answer_pages(arguments.run, arguments.image, arguments.question, overrides=arguments.overrides)


def _ask_fusion(arguments: argparse.Namespace) -> None:
    from trainer.inference.answer import answer_photos  # after the run was found: it imports torch

    answers = answer_photos(
        arguments.run,
        arguments.image,
        arguments.question,
        overlay=arguments.overlay,
        pipeline=arguments.pipeline,
        overrides=arguments.overrides,
    )
    for one in answers:
        is_alone = len(one.photos) == len(arguments.image)
        _tell(one.answered, "" if is_alone else f"{' '.join(map(str, one.photos))}: ")
        if one.drawn is not None:
            say(f"drawn: {one.drawn}")
