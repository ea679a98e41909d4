"""`duoflow scenes`: the files of a rendered set, written so that a directory is either complete or not there."""

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from shards.errors import UserError
from shards.scenes import color_and_detail, documents, lxmert, nlvr2, six_things, snli_ve, vqa
from shards.scenes.color_and_detail import color_and_detail_files
from shards.scenes.documents import document_files
from shards.scenes.gqa_format import (
    choice_records,
    json_members,
    json_object,
    question_records,
    questions,
    scene_graph,
)
from shards.scenes.lxmert import lxmert_files
from shards.scenes.nlvr2 import nlvr2_files
from shards.scenes.raster import encode_png, paint
from shards.scenes.six_things import six_things_files
from shards.scenes.snli_ve import snli_ve_files
from shards.scenes.vqa import vqa_files
from shards.scenes.world import MIN_IMAGES, SPLITS, Dice, scene, split_of


class SceneTask(NamedTuple):
    """What is rendered for a task."""

    min_images: int
    """Fewer would leave a split empty."""
    image_counts: Callable[[int], Counter[str]]
    """Of a number of images, how many each split gets."""


TASKS = {
    "gqa": SceneTask(MIN_IMAGES, lambda num_images: Counter(map(split_of, range(num_images)))),
    "vqa": SceneTask(vqa.MIN_IMAGES, vqa.image_counts),
    "nlvr2": SceneTask(nlvr2.MIN_IMAGES, nlvr2.image_counts),
    "snli_ve": SceneTask(snli_ve.MIN_IMAGES, snli_ve.image_counts),
    "lxmert": SceneTask(lxmert.MIN_IMAGES, lxmert.image_counts),
    "mpdocvqa": SceneTask(documents.MIN_IMAGES, documents.image_counts),
    "color_and_detail": SceneTask(color_and_detail.MIN_IMAGES, color_and_detail.image_counts),
    "six_things": SceneTask(six_things.MIN_IMAGES, six_things.image_counts),
}


def add_scenes_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `scenes` verb; its namespace carries `handler`: namespace -> exit code."""
    parser = subparsers.add_parser(
        "scenes",
        description="Render coloured shapes with questions, scene graphs and choices as GQA writes them, or with what "
        "another task's files hold. The splits share no image; GQA's are "
        f"{', '.join(SPLITS)}, where `backbone` is there to train vision encoders on before `train`. `six_things` "
        "and `color_and_detail` are in GQA's format as well: several things in a picture, of which a question names "
        "one; and things whose color a coarse look tells and whose shape only a fine one. Of `mpdocvqa` the images are "
        "pages of documents with lines to be read.",
        epilog="duoflow scenes scenes --images 60 --seed 1",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to write; it appears when it is complete")
    parser.add_argument("--images", metavar="N", type=int, default=2000, help="how many images (default: %(default)s)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--task", choices=TASKS, default="gqa", help="whose files to write (default: %(default)s)")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    written = write_scenes(arguments.out, num_images=arguments.images, seed=arguments.seed, task=arguments.task)
    counts = TASKS[arguments.task].image_counts(arguments.images)
    splits = ", ".join(f"{split} {count}" for split, count in counts.items())
    state = "rendered" if written else "already there, nothing to do"
    print(f"{arguments.out}: {counts.total()} images ({splits}), seed {arguments.seed}: {state}")
    return 0


def write_scenes(out: Path, *, num_images: int, seed: int, task: str = "gqa") -> bool:
    """Write a task's set, unless all of it is there; returns whether it was written.

    Raises:
        UserError: too few images, `out` holds something else, or it cannot be written.
    """
    fewest = TASKS[task].min_images
    if num_images < fewest:
        raise UserError(f"--images {num_images}: expected at least {fewest}, so that no split is empty")
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a directory, or a path where there is nothing yet")
    try:
        if out.is_dir() and any(out.iterdir()):
            _require_same(out, task_files(task, num_images=num_images, seed=seed))
            return False
        _write_new(out, task_files(task, num_images=num_images, seed=seed))
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be read or written: {error.strerror}") from None
    return True


def task_files(task: str, *, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of a task's set, images first: a pure function of its arguments."""
    makers = {
        "gqa": scene_files,
        "vqa": vqa_files,
        "nlvr2": nlvr2_files,
        "snli_ve": snli_ve_files,
        "lxmert": lxmert_files,
        "mpdocvqa": document_files,
        "color_and_detail": color_and_detail_files,
        "six_things": six_things_files,
    }
    return makers[task](num_images=num_images, seed=seed)


def scene_files(*, num_images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of GQA's set, images first: a pure function of its arguments."""
    entries: dict[str, list[bytes]] = {}
    for number in range(num_images):
        dice, shown, split = Dice(seed, number), scene(seed, number), split_of(number)
        yield f"images/{shown.image_id}.png", encode_png(paint(shown))
        asked = questions(shown, dice)
        records = (
            ("balanced_questions", question_records(shown, asked)),
            ("sceneGraphs", {shown.image_id: scene_graph(shown)}),
            ("choices", choice_records(asked)),
        )
        for name, entry in records:
            entries.setdefault(f"{split}_{name}.json", []).extend(json_members(entry))
    for path, lines in sorted(entries.items()):
        yield path, json_object(lines)


def _require_same(out: Path, files: Iterator[tuple[str, bytes]]) -> None:
    """Files besides those of the set, such as shards built from it, are left alone."""
    for path, content in files:
        try:
            same = (out / path).read_bytes() == content
        except FileNotFoundError:
            same = False
        if not same:
            raise UserError(
                f"{out}: exists and holds something else ({path} is missing or differs); "
                "give another OUT, or the --task, --images and --seed that it was rendered with"
            )


def _write_new(out: Path, files: Iterator[tuple[str, bytes]]) -> None:
    """Write beside `out`, then rename. Not one fsync per image: rendering again finds and names a damaged file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    staged.mkdir()
    try:
        for path, content in files:
            (staged / path).parent.mkdir(exist_ok=True)
            (staged / path).write_bytes(content)
        os.replace(staged, out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
