"""`duoflow shards build | verify | info | upgrade`: arguments in, lines and an exit code out."""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from shards.annotations import READERS
from shards.build.build_request import SHARD_BYTES, BuildRequest, EngineName
from shards.build.columns import upgrade
from shards.build.verify import verify_shards
from shards.build.writer import build
from shards.format.index import SplitIndex, read_index
from shards.lower_case import unmatched_answers
from shards.progress import say
from shards.remote.address import is_url

USERS_MISTAKE = 2
TOP_ANSWERS = 10


def add_shards_parser(subparsers: Any) -> None:
    """Add `shards` and its verbs to a command's subparsers.

    Each verb sets `handler`: a function of the parsed arguments that returns the exit code. A handler raises UserError
    for the caller to print, and lets KeyboardInterrupt through.
    """
    shards = subparsers.add_parser(
        "shards",
        description="Shards are tars that hold each image once, with everything that is asked about it, and an index "
        "(docs/data.md).",
        epilog="duoflow shards info data/easyvqa/train",
    )
    verbs = shards.add_subparsers(dest="shards_verb", required=True, metavar="build | verify | info | upgrade")
    _add_build(
        verbs.add_parser(
            "build",
            help="pack images and questions into WebDataset tars with an index",
            description="Read questions, look at every image to its last pixel, and pack both. The same input gives "
            "the same bytes, and the same command again changes nothing.",
            epilog="duoflow shards build --format csv --questions rows.csv --images photos --out data/mine",
        )
    )
    verify = verbs.add_parser(
        "verify",
        help="re-read a directory of shards and list every fault",
        description="Read every byte of a directory of shards again and list every fault: exit code 2 where there is "
        "one.",
        epilog="duoflow shards verify data/easyvqa/train",
    )
    info = verbs.add_parser(
        "info",
        help="what a directory of shards holds",
        description="Counts, types and the most frequent answers of a directory of shards, from its index.",
        epilog="duoflow shards info data/easyvqa/train --json",
    )
    columns = verbs.add_parser(
        "upgrade",
        help="give shards of an older build the columns that loaders map",
        description="Write columns.bin beside the index of finished shards that have none, or those of another index. "
        "Index and shards stay as they are.",
        epilog="duoflow shards upgrade data/easyvqa/train",
    )
    columns.add_argument("directory", metavar="DIR", type=Path, help="a directory of shards")
    columns.set_defaults(handler=run_upgrade)
    for parser, handler in ((verify, run_verify), (info, run_info)):
        parser.add_argument("directory", metavar="DIR", type=_place, help="a directory, or a URL")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(handler=handler)


def run_build(arguments: argparse.Namespace) -> int:
    """Build, or say that it was built already."""
    request = BuildRequest(
        format=arguments.format,
        questions=arguments.questions,
        out=arguments.out,
        images=arguments.images,
        regions=arguments.regions,
        scene_graphs=arguments.scene_graphs,
        annotations=arguments.annotations,
        ocr=arguments.ocr,
        limit=arguments.limit,
        workers=_workers(arguments),
        on_missing=arguments.on_missing,
        balanced_only=arguments.balanced_only,
        resize=arguments.resize,
        shard_bytes=arguments.shard_bytes,
        lowercase_answers=arguments.lowercase_answers,
        show_progress=True,
        engine=arguments.engine,
        ray_address=arguments.ray_address,
    )
    try:
        index, is_new = build(request)
    except KeyboardInterrupt:
        say(f"{request.out}: stopped; nothing half-written is left", error=True)
        raise
    say(f"{request.out}: {'built' if is_new else 'already built, nothing changed'}: {_one_line(index)}")
    takes_lower_case = "lowercase_answers" in READERS[request.format].options
    if takes_lower_case and (warning := unmatched_answers(index.answers)):
        say(f"{request.out}: warning: {warning}", error=True)
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Print every fault; 2 if there is one."""
    report = verify_shards(arguments.directory, workers=_cores(), show_progress=not arguments.json)
    looked_at = {name: getattr(report, name) for name in ("shards", "images", "questions", "bytes")}
    if arguments.json:
        document = {
            "directory": str(arguments.directory),
            "ok": not report.faults,
            **looked_at,
            "faults": report.faults,
        }
        say(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        for fault in report.faults:
            say(f"{arguments.directory}: {fault}", error=True)
        verdict = _amounts({"faults": len(report.faults)}) if report.faults else "no fault"
        say(f"{arguments.directory}: {verdict} in {_amounts(looked_at)}", error=bool(report.faults))
    return USERS_MISTAKE if report.faults else 0


def run_upgrade(arguments: argparse.Namespace) -> int:
    """Make the columns of a directory, or say that they are there; shards and index stay as they are."""
    made = upgrade(arguments.directory, workers=_cores(), show_progress=True)
    say(f"{arguments.directory}: {'columns made' if made else 'has its columns, nothing changed'}")
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Print what the index says."""
    facts = describe(read_index(arguments.directory))
    if arguments.json:
        say(json.dumps({"directory": str(arguments.directory), **facts}, indent=1, ensure_ascii=False))
    else:
        say("\n".join(_table(facts)))
    return 0


def describe(index: SplitIndex) -> dict[str, Any]:
    """The facts of an index that people ask for, in JSON's types."""
    return {
        "format": index.reader,
        "sources": [source.name for source in index.sources],
        "options": index.options,
        "counts": index.counts,
        **({} if index.medium == "pixels" else {"regions": str(index.regions)}),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        **{name: _most_first(index.types.get(name, {})) for name in {"structural": {}, "semantic": {}} | index.types},
        "classifications": list({"structural": {}, "semantic": {}} | index.types),
        "answer_vocabulary": len(index.answers),
        "answer_groups": len(index.groups),
        "answers": _most_first(index.answers),
    }


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", required=True, choices=sorted(READERS), help="what the question files are")
    parser.add_argument(
        "--questions",
        required=True,
        nargs="+",
        type=Path,
        metavar="F",
        help="question files; for gqa also a directory of chunks (train_all_questions_*.json)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="the directory of images")
    parser.add_argument(
        "--regions",
        nargs="+",
        action="extend",
        type=Path,
        metavar="TSV",
        default=[],
        help="in place of --images: what a detector saw in them, in LXMERT's TSV files",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the directory of shards to make")
    parser.add_argument("--scene-graphs", type=Path, metavar="F", help="GQA's scene graphs: adds boxes to questions")
    parser.add_argument(
        "--annotations",
        nargs="+",
        type=Path,
        metavar="F",
        default=[],
        help="VQA's annotations of the questions; without them there are no answers",
    )
    parser.add_argument(
        "--ocr",
        nargs="+",
        type=Path,
        metavar="NPY",
        default=[],
        help="MP-DocVQA's IMDB files: adds the words of its pages, with their boxes",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="pack the first N images only")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: the cores of this machine, or of the cluster)"
    )
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        default="local",
        help="where images are decoded: here, or on a Ray cluster that runs already; the shards are the same",
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="the Ray cluster (default: RAY_ADDRESS, or the cluster of this machine)",
    )
    parser.add_argument("--on-missing", choices=("fail", "skip"), default="fail", help="images missing or unreadable")
    parser.add_argument("--balanced-only", action="store_true", help="leave out questions that are not balanced")
    parser.add_argument("--resize", type=int, metavar="N", help="bring the short side down to N pixels, as JPEG")
    parser.add_argument("--shard-bytes", type=int, metavar="N", default=SHARD_BYTES, help="largest size of a tar")
    parser.add_argument(
        "--lowercase-answers",
        action="store_true",
        help="write answers in lower case with single spaces, as a model's are compared",
    )
    parser.set_defaults(handler=run_build)


def _place(text: str) -> str | Path:
    """Where shards are: a URL stays a text, of which a path would lose a slash."""
    return text if is_url(text) else Path(text)


def _workers(arguments: argparse.Namespace) -> int:
    if arguments.workers is not None:
        return arguments.workers
    return _cores() if arguments.engine == "local" else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _one_line(index: SplitIndex) -> str:
    counts = index.counts
    amounts = {"images": counts["images"], "questions": counts["questions"], "shards": len(index.shards)}
    text = _amounts({**amounts, "bytes": sum(shard.bytes for shard in index.shards)})
    left_out = {
        name: number for name, number in counts.items() if number and name not in ("images", "questions", "answered")
    }
    return text + (f"; left out: {_amounts(left_out)}" if left_out else "")


def _amounts(amounts: dict[str, int]) -> str:
    names = {name: name.replace("_", " ") for name in amounts}
    return ", ".join(f"{n:,} {names[name] if n != 1 else names[name].removesuffix('s')}" for name, n in amounts.items())


def _most_first(table: dict[str, int]) -> dict[str, int]:
    return dict(sorted(table.items(), key=lambda entry: (-entry[1], entry[0])))


def _table(facts: dict[str, Any]) -> list[str]:
    lines = [f"{'format':<22}{facts['format']}", f"{'built from':<22}{', '.join(facts['sources'])}"]
    if "regions" in facts:
        lines.append(f"{'images':<22}{facts['regions']}")
    given = {name: value for name, value in facts["options"].items() if value not in (None, False)}
    lines.append(f"{'options':<22}{', '.join(f'{name} {value}' for name, value in sorted(given.items()))}")
    numbers = {
        **facts["counts"],
        **{name: facts[name] for name in ("shards", "bytes", "answer_vocabulary", "answer_groups")},
    }
    lines += _rows(numbers.items())
    questions = facts["counts"]["questions"]
    for name in facts["classifications"]:
        if facts[name]:
            title = name.removesuffix("_type").replace("_", " ")
            lines += ["", f"{title} type", *_rows(facts[name].items(), questions)]
    if facts["answers"]:
        top = list(facts["answers"].items())[:TOP_ANSWERS]
        lines += ["", f"most frequent answers ({len(top)} of {facts['answer_vocabulary']})", *_rows(top, questions)]
    return lines


def _rows(entries: Iterable[tuple[str, int]], whole: int | None = None) -> list[str]:
    share = (lambda number: f"{100 * number / whole:8.2f} %") if whole else (lambda _: "")
    return [f"{name.replace('_', ' '):<22}{number:>16,}{share(number)}" for name, number in entries]
