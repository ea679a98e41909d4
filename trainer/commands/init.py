"""The `init` verb: from a directory of images and a file of questions to shards and a recipe that runs."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError
from shards.own.table import ROLES, Role
from shards.progress import say

if TYPE_CHECKING:
    from trainer.own.prepare import Prepared, Request  # it reads recipes, which takes a while to import


def add_init_parser(verbs: Any) -> None:
    """Add `init`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "init",
        description="Look at images and questions about them, pack them into shards for training and validation (no "
        "image is in both), and write a commented recipe that trains a first model without any download.",
        epilog="duoflow init my_run --images photos --questions rows.csv",
    )
    add = parser.add_argument
    add("name", metavar="NAME", type=Path, help="writes NAME.yaml, the recipe, and NAME/, the shards")
    add("--images", metavar="DIR", type=Path, required=True, help="the directory of images, at any depth")
    add(
        "--questions",
        metavar="F",
        type=Path,
        required=True,
        help="CSV, TSV, JSON lines or a JSON array, with an image, a question and an answer in each row",
    )
    add(
        "--columns",
        metavar="ROLE=COLUMN",
        nargs="+",
        type=_column,
        default=[],
        help=f"which column is the {', '.join(ROLES[:-1])} or {ROLES[-1]}, where that is not told by its name",
    )
    add("--val-share", metavar="P", type=_share, help="part of the images kept for validation (0.1; 0.2 of under 100)")
    add("--seed", metavar="S", type=int, default=1, help="another one keeps other images for validation")
    add("--workers", metavar="N", type=int, help="processes that decode images (default: the cores of this machine)")
    add("--json", action="store_true", help="print what was found and chosen as JSON")
    parser.set_defaults(handler=_init)


def _init(arguments: argparse.Namespace) -> int:
    from trainer.own.prepare import Request, prepare

    cores = len(os.sched_getaffinity(0))
    request = Request(
        name=arguments.name,
        images=arguments.images,
        questions=arguments.questions,
        columns=dict(arguments.columns),
        val_share=arguments.val_share,
        seed=arguments.seed,
        workers=cores if arguments.workers is None else arguments.workers,
    )
    prepared = prepare(request, lambda line: say(line, error=arguments.json))
    if arguments.json:
        say(json.dumps(_document(request, prepared), indent=1, ensure_ascii=False))
    else:
        say("\n".join(_lines(request, prepared)))
    return 0


def _lines(request: "Request", prepared: "Prepared") -> list[str]:
    facts = prepared.facts
    left_out = [f"left out: {line}" for line in prepared.left_out] or ["nothing was left out"]
    rows = [(choice.key, str(choice.value), choice.why) for choice in prepared.choices]
    keys, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [
        *left_out,
        f"split by image, {100 * prepared.share:g} % to validate on: {facts.train_images:,} images with "
        f"{facts.train_questions:,} questions in {request.shards('train')}, {facts.val_images:,} with "
        f"{facts.val_questions:,} in {request.shards('val')}",
        f"always answering {facts.commonest!r} is right in {100 * facts.commonest_share:.1f} % of training",
        "",
        *(f"{key:<{keys}}  {value:>{values}}  {why}" for key, value, why in rows),
        "",
        *(f"note: {line}" for line in prepared.doubts),
        f"{request.recipe}: written; train it with",
        f"  duoflow train {request.recipe}",
    ]


def _document(request: "Request", prepared: "Prepared") -> dict[str, Any]:
    return {
        "recipe": str(request.recipe),
        "shards": {split: str(request.shards(split)) for split in ("train", "val")},
        "rows": len(prepared.table.rows),
        "columns": prepared.table.columns,
        "guessed": sorted(prepared.table.guessed),
        "left_out": prepared.left_out,
        "val_share": prepared.share,
        "facts": prepared.facts._asdict(),
        "choices": [choice._asdict() for choice in prepared.choices],
        "notes": prepared.doubts,
    }


def _column(text: str) -> tuple[Role, str]:
    role, sign, column = text.partition("=")
    if role not in ROLES or not sign or not column:
        raise ConfigError(f"--columns {text}: expected ROLE=COLUMN, where ROLE is {', '.join(ROLES)}")
    return role, column


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share < 1.0:
        raise ConfigError(f"--val-share {text}: expected a part of 1, such as 0.1")
    return share
