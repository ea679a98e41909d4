"""GQA's own question files, one record at a time."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from shards.annotations.json_stream import iterate_members
from shards.annotations.scene_graphs import SceneGraphs
from shards.annotations.seam import Annotation
from shards.errors import DataError
from shards.format.records import Boxes, Groups, Question, Types

ENDINGS = (".jpg", ".png", ".jpeg", ".webp")
"""GQA names an image by its id alone."""

NOT_A_STEP = ("exist", "query: name", "choose name")
"""Operations that GQA's official script does not count as reasoning steps."""

_chunk_name = re.compile(r"(.+)_(\d+)\.json")
_object_id = re.compile(r"\s*\([^()]*\)")


class _Operation(msgspec.Struct):
    operation: str
    argument: str = ""


class _Objects(msgspec.Struct, rename="camel"):
    question: dict[str, str] = {}
    answer: dict[str, str] = {}
    full_answer: dict[str, str] = {}


class _Record(msgspec.Struct, rename="camel"):
    """What a record may hold; test and challenge files have only the first three."""

    question: str
    image_id: str
    is_balanced: bool = True
    answer: str | None = None
    full_answer: str | None = None
    types: Types | None = None
    groups: Groups | None = None
    semantic: list[_Operation] | None = None
    entailed: tuple[str, ...] | None = None
    equivalent: tuple[str, ...] | None = None
    annotations: _Objects | None = None


def expand(paths: Sequence[Path]) -> list[Path]:
    """Question files, with each directory of chunks (`train_all_questions_0.json`, ...) replaced by its chunks.

    Raises:
        DataError: a directory holds no chunks, or chunks of several sets, or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        try:
            files += _chunks(path) if path.is_dir() else [path]
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return files


def read(path: Path, scenes: SceneGraphs, advance: Callable[[int], object]) -> Iterator[Annotation]:
    """Yield the questions of one file; ids are strings and stay as they are written.

    Raises:
        DataError: broken JSON (file, byte offset), or a record that lacks what a question needs (file, question id).
    """
    for question_id, record in iterate_members(path, advance):
        try:
            parsed = msgspec.convert(record, _Record)
        except msgspec.ValidationError as error:
            raise DataError(f"{path}: question {question_id!r}: {error}") from None
        if not parsed.image_id:
            raise DataError(f"{path}: question {question_id!r}: imageId is empty")
        yield Annotation(parsed.image_id, (parsed.image_id,), _question(question_id, parsed, scenes))


def choose_options(operation: str, argument: str, answer: str | None) -> tuple[str, ...]:
    """The alternatives of a `choose` operation, in the words of the answers.

    `choose color: black|silver` gives (black, silver); `choose rel: girl,to the left of|to the right of,s (123)` names
    them in the middle. GQA answers such a relation with "left": when the answer is none of the alternatives, the words
    that all alternatives share at both ends are dropped, and the result is kept if the answer is then among them.
    """
    text = _object_id.sub("", argument)
    parts = text.split(",")
    if operation == "choose rel" and len(parts) >= 3:
        text = ",".join(parts[1:-1])
    options = tuple(option.strip() for option in text.split("|") if option.strip())
    if len(options) < 2:
        return ()
    if answer is not None and answer not in options:
        short = _without_shared_ends(options)
        return short if answer in short else options
    return options


def count_steps(semantic: Sequence[_Operation]) -> int:
    """Reasoning steps of a functional program, counted as GQA's official evaluation script does."""
    texts = [f"{step.operation}: {step.argument}" for step in semantic]
    return sum(not any(word in text for word in NOT_A_STEP) for text in texts)


def _question(question_id: str, record: _Record, scenes: SceneGraphs) -> Question:
    semantic = record.semantic or []
    options: tuple[str, ...] = ()
    for step in semantic:
        if step.operation.startswith("choose"):
            options = choose_options(step.operation, step.argument, record.answer)
    return Question(
        question_id=question_id,
        question=record.question,
        answer=record.answer,
        full_answer=record.full_answer,
        types=record.types or Types(),
        groups=record.groups or Groups(),
        options=options,
        steps=count_steps(semantic) if semantic else None,
        is_balanced=record.is_balanced,
        entailed=record.entailed or (),
        equivalent=record.equivalent or (),
        boxes=_boxes(record.image_id, record.annotations or _Objects(), scenes),
    )


def _boxes(image_id: str, objects: _Objects, scenes: SceneGraphs) -> Boxes:
    return Boxes(
        question=scenes.boxes(image_id, objects.question),
        answer=scenes.boxes(image_id, objects.answer),
        full_answer=scenes.boxes(image_id, objects.full_answer),
    )


@lru_cache(maxsize=4096)  # a few hundred relations make up all of GQA
def _without_shared_ends(options: tuple[str, ...]) -> tuple[str, ...]:
    words = [option.split() for option in options]
    while all(words) and len({text[0] for text in words}) == 1:
        words = [text[1:] for text in words]
    while all(words) and len({text[-1] for text in words}) == 1:
        words = [text[:-1] for text in words]
    return tuple(" ".join(text) for text in words)


def _chunks(directory: Path) -> list[Path]:
    found = [
        (match[1], int(match[2]), path) for path in directory.iterdir() if (match := _chunk_name.fullmatch(path.name))
    ]
    names = {name for name, _, _ in found}
    if len(names) != 1:
        what = f"chunks of several sets: {', '.join(sorted(names))}" if names else "no file NAME_<number>.json"
        raise DataError(f"{directory}: {what}; expected one set of chunks such as train_all_questions_0.json")
    return [path for _, _, path in sorted(found)]
