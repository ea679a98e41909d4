"""Rows and images in, shards and a recipe out: what `duoflow init` does, step by step."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from shards.atomic import write_atomically
from shards.build.writer import build_shards
from shards.errors import DataError, UserError
from shards.format.index import SplitIndex
from shards.own.photos import Photos, measure, same_pictures, val_images
from shards.own.table import ROLES, Asked, Role, Table, read_table
from trainer.config import load_config
from trainer.config.schema import RunSection
from trainer.own.choices import Choice, choose, doubts, explain
from trainer.own.facts import Facts, gather
from trainer.own.recipe import recipe_text

SHORT_SIDE = 384
"""To which packed images are shrunk: BLIP's input, so that the shards serve larger models later."""
FEW_IMAGES = 100
SHARES = (0.2, 0.1)
"""Part of the images that is kept for validation: of fewer than FEW_IMAGES, and of more."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `duoflow init` is asked for."""

    name: Path
    """Of the recipe without its ending, and of the directory beside it."""
    images: Path
    questions: Path
    columns: Mapping[Role, str]
    val_share: float | None = None
    """Part of the images that is kept for validation; None goes by their number."""
    seed: int = 1
    workers: int = 1

    @property
    def recipe(self) -> Path:
        return self.name.with_name(f"{self.name.name}.yaml")

    def rows(self, split: str) -> Path:
        return self.name / "questions" / f"{split}.jsonl"

    def shards(self, split: str) -> Path:
        return self.name / "shards" / split


class Prepared(NamedTuple):
    """What was found, chosen and written."""

    table: Table
    left_out: list[str]
    """A line for each kind of rows or images that are not used."""
    facts: Facts
    share: float
    choices: list[Choice]
    doubts: list[str]


class _Found(NamedTuple):
    rows: list[tuple[str, Asked]]
    """(file of the image, row)"""
    left_out: list[str]


def prepare(request: Request, say: Callable[[str], object]) -> Prepared:
    """Look at the data, split it by image, pack it and write the recipe.

    Args:
        say: shows a line about what is being done.

    Raises:
        UserError: the rows, the images or the place do not allow it; a recipe is then not written.
    """
    check_place(request)
    table = read_table(request.questions, request.columns)
    say(describe(request.questions, table))
    photos = Photos(request.images)
    found = _match(request, table, photos)
    files = sorted({file for file, _ in found.rows})
    sizes = measure(request.images, files)
    usable = [file for file in files if file not in sizes.faults]
    left_out = [
        *found.left_out,
        *_named("images that cannot be used", [f"{f} {why}" for f, why in sizes.faults.items()]),
    ]
    if not usable:
        raise DataError(f"--images {request.images}: none of {len(files):,} images can be used; {left_out[-1]}")
    share = request.val_share if request.val_share is not None else SHARES[len(usable) >= FEW_IMAGES]
    val = val_images(same_pictures(request.images, usable), share, request.seed)
    rows = [(file, row) for file, row in found.rows if file not in sizes.faults]
    indexes = {}
    for split in ("train", "val"):
        own = [(file, row) for file, row in rows if (file in val) == (split == "val")]
        indexes[split] = _pack(request, split, own, keep_ids=_ids_are_unique(table.rows))
        broken = [f"{image.image_ref} ({image.reason})" for image in indexes[split].skipped]
        left_out += _named(f"images of {split} that are damaged", broken)
    texts = [row.question for file, row in rows if file not in val]
    facts = gather(indexes["train"], indexes["val"], texts, [sizes.short_sides[file] for file in usable])
    chosen = choose(facts)
    reasons = explain(facts, chosen)
    text = recipe_text(
        facts,
        chosen,
        reasons,
        recipe=str(request.recipe),
        rows=request.questions.name,
        train=str(request.shards("train")),
        val=str(request.shards("val")),
    )
    write_atomically(request.recipe, text.encode())
    load_config(request.recipe)
    return Prepared(table, left_out, facts, share, reasons, doubts(facts))


def check_place(request: Request) -> None:
    """Whether a recipe of this name can be written.

    Raises:
        UserError: there is one already, or the name cannot be that of a run.
    """
    if request.recipe.exists():
        raise UserError(
            f"{request.recipe}: is there already; train it with `duoflow train {request.recipe}`, remove it to have it "
            "written again, or give another NAME"
        )
    try:
        RunSection(name=request.name.name)
    except ValidationError:
        raise UserError(
            f"NAME {request.name.name!r}: expected letters, digits and _ + = @ . - (the first one no dot or hyphen): "
            "the run will be called so"
        ) from None
    if request.name.exists() and not request.name.is_dir():
        raise UserError(f"{request.name}: is a file; give another NAME, whose directory will hold the shards")


def describe(path: Path, table: Table) -> str:
    """One line on how a file of questions was read."""
    taken = ", ".join(
        f"{role} from {table.columns[role]!r}{' (by what stands in it)' if role in table.guessed else ''}"
        for role in ROLES
        if role in table.columns
    )
    return f"{path}: {len(table.rows):,} rows, {table.kind}; {taken}"


def _match(request: Request, table: Table, photos: Photos) -> _Found:
    """Rows with the files of their images; those that cannot be used are counted and named."""
    rows: list[tuple[str, Asked]] = []
    missing: Counter[str] = Counter()
    silent: list[str] = []
    for row in table.rows:
        if not row.question or row.answer is None:
            silent.append(f"{row.place} has no {'answer' if row.question else 'question'}")
            continue
        try:
            file = photos.find(row.image)
        except DataError as error:
            raise DataError(f"{request.questions}: {row.place}: {error}") from None
        if file is None:
            missing[row.image] += 1
        else:
            rows.append((file, row))
    lost = [
        f"{image or 'a row without an image'} in {count} row{'s' if count > 1 else ''}"
        for image, count in missing.items()
    ]
    left_out = [*_named("rows without question or answer", silent), *_named(f"images not in {request.images}", lost)]
    if photos.others and missing:
        left_out.append(
            f"{len(photos.others):,} files such as {photos.others[0]} are no JPEG, PNG or WebP: convert them"
        )
    if not rows:
        raise DataError(f"{request.questions}: no row can be used: {'; '.join(left_out) or 'there is none'}")
    if sum(missing.values()) > len(rows):
        raise DataError(
            f"{request.questions}: {sum(missing.values()):,} of {len(table.rows):,} rows name images that are not in "
            f"{request.images}, such as {next(iter(missing))!r} (there: {photos.files[0]!r}); is it the right "
            f"directory, and {table.columns['image']!r} the column of images (--columns image=COLUMN)?"
        )
    return _Found(rows, left_out)


def _ids_are_unique(rows: Sequence[Asked]) -> bool:
    ids = [row.question_id for row in rows]
    return None not in ids and len(set(ids)) == len(ids)


def _pack(request: Request, split: str, rows: Sequence[tuple[str, Asked]], *, keep_ids: bool) -> SplitIndex:
    """The rows of a split in the generic format, and their shards."""
    content = "".join(
        json.dumps(_record(file, row, keep_ids), ensure_ascii=False) + "\n" for file, row in rows
    ).encode()
    path = request.rows(split)
    if path.exists() and path.read_bytes() != content:
        raise UserError(f"{request.name}: holds the shards of other rows; remove this directory, or give another NAME")
    write_atomically(path, content)
    return build_shards(
        format="jsonl",
        questions=[path],
        images=request.images,
        out=request.shards(split),
        on_missing="skip",
        resize=SHORT_SIDE,
        lowercase_answers=True,
        workers=request.workers,
        show_progress=True,
    )


def _record(file: str, row: Asked, keep_id: bool) -> dict[str, Any]:
    record = {"image": file, "question": row.question, "answer": row.answer}
    return {**record, "question_id": row.question_id} if keep_id else record


def _named(what: str, places: Sequence[str]) -> list[str]:
    """`images not in photos: 3 (a.jpg, b.jpg, c.jpg)`, or nothing."""
    if not places:
        return []
    more = f", and {len(places) - _SHOWN:,} more" if len(places) > _SHOWN else ""
    return [f"{what}: {len(places):,} ({', '.join(places[:_SHOWN])}{more})"]
