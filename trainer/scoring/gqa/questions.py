"""GQA's question files as columns of numbers, with the regions of their objects where scene graphs are given.

The files are decoded block by block: of 2 million questions, some hundred megabytes stay in memory.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.annotations.gqa import NOT_A_STEP, count_steps
from shards.annotations.json_blocks import iterate_object
from shards.errors import DataError
from trainer.scoring.gqa.scenes import WHOLE_IMAGE, Advance, Box, Scenes
from trainer.scoring.gqa.scores import GqaQuestions, Numbers


class _Types(msgspec.Struct, gc=False):
    structural: str | None = None
    semantic: str | None = None
    detailed: str | None = None


class _Groups(msgspec.Struct, gc=False, rename={"global_": "global"}):
    global_: str | None = None


class _Operation(msgspec.Struct, gc=False):
    operation: str
    argument: str = ""


class _Record(msgspec.Struct, rename="camel"):
    question: str
    is_balanced: bool = True
    answer: str | None = None
    types: _Types | None = None
    groups: _Groups | None = None
    semantic: list[_Operation] | None = None
    entailed: list[str] | None = None


class _Mentions(msgspec.Struct, rename="camel"):
    question: dict[str, str] = {}
    full_answer: dict[str, str] = {}


class _RecordWithMentions(_Record, rename="camel"):
    image_id: str = ""
    annotations: _Mentions | None = None


class _Answer(msgspec.Struct, gc=False):
    answer: str | None = None


class Texts:
    """Texts by number, in the order in which they first come; None is -1."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        # A dict that numbers what it does not have yet: a look-up for each of millions of texts stays in C.
        self._numbers: defaultdict[str | None, int] = defaultdict(lambda: len(self._numbers) - 1)
        self._numbers[None] = -1

    def number(self, texts: Collection[str | None]) -> Numbers:
        """The numbers of texts, which may be new."""
        numbers = np.fromiter(map(self._numbers.__getitem__, texts), np.int64, len(texts))
        num_new = len(self._numbers) - 1 - len(self.texts)
        self.texts += [*islice(reversed(self._numbers), num_new)][::-1]
        return numbers

    def find(self, texts: Collection[str]) -> Numbers:
        """The numbers of texts; -1 for those that did not come yet."""
        get = self._numbers.get
        return np.fromiter((get(text, -1) for text in texts), np.int64, len(texts))


@dataclass(frozen=True)
class Regions:
    """What the M scored questions are about: question m has boxes[starts[m] : starts[m + 1]]."""

    boxes: NDArray[np.float64]
    """(R, 4): x0, y0, x1, y1 in parts of the image."""
    starts: Numbers
    """(M + 1,)."""


@dataclass(frozen=True)
class QuestionSet:
    """Question files as columns, and what the other files of an evaluation need to be read."""

    columns: GqaQuestions
    ids: Texts
    texts: Texts
    """Those of the columns; predictions may add to them."""
    common: NDArray[np.bool_]
    """(M,) whether `types.detailed` has "Common" in it."""
    regions: Regions | None
    """None without scenes."""
    places: Numbers
    """(I + 1,) id -> place among the scored questions; -1 for other ids, and behind the last for ids that are none."""
    num_questions: int
    """Balanced or not."""


def read_answers(paths: Sequence[Path], advance: Advance) -> set[str]:
    """Every answer that occurs in question files.

    Raises:
        DataError: broken JSON (byte offset).
    """
    records = (
        record for path in paths for block in iterate_object(path, _Answer, advance) for record in block.values()
    )
    return {record.answer for record in records if record.answer is not None}


def read_questions(
    paths: Sequence[Path], advance: Advance, *, scenes: Scenes | None = None, scene_region: bool = False
) -> QuestionSet:
    """Read question files.

    Args:
        scenes: where the objects are; without them there are no regions.
        scene_region: a question whose program speaks of the scene is about the whole image too. The official script
            means to say so, but looks for "scene" among the keys of a program's steps, where it never is.

    Raises:
        DataError: broken JSON (byte offset), a record without what a score needs (question id), a question that is
            there twice, none that is balanced, or an object that the scenes do not have.
    """
    reader = _Reader(scenes, scene_region)
    for path in paths:
        reader.read(path, advance)
    return reader.finish()


def scored_places(questions: QuestionSet, ids: Collection[str]) -> Numbers:
    """The places of questions among the scored ones; -1 for others."""
    return questions.places[questions.ids.find(ids)]


def refuse_unseen(path: Path, what: str, seen: NDArray[np.bool_], questions: QuestionSet) -> None:
    """Say of how many scored questions a file lacks something.

    Raises:
        DataError: one of `seen` (M,) is False.
    """
    if not seen.all():
        first = questions.ids.texts[questions.columns.scored[np.argmin(seen)]]
        raise DataError(
            f"{path}: no {what} for {int((~seen).sum()):,} of {len(seen):,} balanced questions, such as {first!r}; "
            "give the file of the split that the questions are of"
        )


class _Reader:
    """Question files on their way into columns, which grow by a piece per block."""

    def __init__(self, scenes: Scenes | None, scene_region: bool) -> None:
        self._scenes, self._scene_region = scenes, scene_region
        self._ids, self._texts = Texts(), Texts()
        self._pieces: defaultdict[str, list[NDArray]] = defaultdict(list)
        self._unknown_objects: list[str] = []

    def read(self, path: Path, advance: Advance) -> None:
        for block in iterate_object(path, _Record if self._scenes is None else _RecordWithMentions, advance):
            records = list(block.values())
            unanswered = next((key for key, record in block.items() if record.answer is None), None)
            if unanswered is not None:
                raise DataError(
                    f"{path}: question {unanswered!r} has no answer; scores need the questions of train, val or "
                    "testdev: the answers of test and challenge are not public"
                )
            asked = self._ids.number(block)
            balanced = np.fromiter((record.is_balanced for record in records), bool, len(records))
            self._pieces["asked"].append(asked)
            self._pieces["gold"].append(self._texts.number([record.answer for record in records]))
            self._pieces["scored"].append(asked[balanced])
            self._add_scored({key: record for key, record in block.items() if record.is_balanced})

    def finish(self) -> QuestionSet:
        asked, scored = self._column("asked"), self._column("scored")
        self._check(asked, scored)
        gold = np.full(len(self._ids.texts), -1, dtype=np.int64)
        gold[asked] = self._column("gold")
        columns = GqaQuestions(
            texts=self._texts.texts,
            gold=gold,
            scored=scored,
            **{name: self._column(name) for name in ("structural", "semantic", "group", "steps", "length")},
            entailed=self._column("entailed"),
            entailed_starts=_starts(self._column("num_entailed")),
        )
        regions = None
        if self._scenes is not None:
            boxes = self._column("boxes", np.float64).reshape(-1, 4)
            regions = Regions(boxes, _starts(self._column("num_regions")))
        places = np.full(len(gold) + 1, -1, dtype=np.int64)
        places[scored] = np.arange(len(scored))
        return QuestionSet(columns, self._ids, self._texts, self._column("common", bool), regions, places, len(asked))

    def _add_scored(self, block: Mapping[str, _Record]) -> None:
        records = block.values()
        types = [record.types or _Types() for record in records]
        groups = [record.groups.global_ if record.groups else None for record in records]
        entailed = [record.entailed or () for record in records]
        columns = {
            "structural": self._texts.number([kind.structural for kind in types]),
            "semantic": self._texts.number([kind.semantic for kind in types]),
            "group": self._texts.number(groups),
            "steps": [_steps(record.semantic or ()) for record in records],
            "length": [len(record.question.split()) for record in records],
            "num_entailed": [len(others) - others.count(key) for key, others in zip(block, entailed, strict=True)],
            "entailed": self._ids.number(
                [other for key, others in zip(block, entailed, strict=True) for other in others if other != key]
            ),
        }
        for name, values in columns.items():
            self._pieces[name].append(np.asarray(values, dtype=np.int64))
        self._pieces["common"].append(np.asarray(["Common" in (kind.detailed or "") for kind in types], dtype=bool))
        if self._scenes is not None:
            regions = [self._regions(key, record, self._scenes) for key, record in block.items()]
            self._pieces["num_regions"].append(np.asarray([len(boxes) for boxes in regions], dtype=np.int64))
            self._pieces["boxes"].append(np.asarray([box for boxes in regions for box in boxes]).reshape(-1))

    def _regions(self, question_id: str, record: _RecordWithMentions, scenes: Scenes) -> list[Box]:
        mentions = record.annotations or _Mentions()
        scene = scenes.get(record.image_id, {})
        boxes = []
        for name in (*mentions.question.values(), *mentions.full_answer.values()):
            if name in scene:
                boxes.append(scene[name])
            else:
                self._unknown_objects.append(f"object {name!r} of image {record.image_id!r}, question {question_id!r}")
        if self._scene_region and any("scene" in text for text in _step_texts(record.semantic or ())):
            boxes.append(WHOLE_IMAGE)
        return boxes

    def _check(self, asked: Numbers, scored: Numbers) -> None:
        repeated = np.flatnonzero(np.bincount(asked) > 1)
        if len(repeated):
            raise DataError(
                f"--questions: {len(repeated):,} questions are there more than once, such as "
                f"{self._ids.texts[repeated[0]]!r}; name each file once, and not both all questions and the balanced "
                "ones among them"
            )
        if not len(scored):
            raise DataError(
                f"--questions: none of {len(asked):,} questions is balanced (isBalanced); only those are scored"
            )
        if self._unknown_objects:
            raise DataError(
                f"--scene-graphs: {len(self._unknown_objects):,} objects that questions are about are not there, such "
                f"as {self._unknown_objects[0]}; give the scene graphs of the split that the questions are of"
            )

    def _column(self, name: str, kind: type = np.int64) -> NDArray:
        return np.concatenate([np.zeros(0, dtype=kind), *self._pieces.pop(name, [])])


def _steps(semantic: Sequence[_Operation]) -> int:
    """What `count_steps` counts, at a third of its cost."""
    texts = _step_texts(semantic)
    everything = "\n".join(texts)
    words = [word for word in NOT_A_STEP if word in everything]
    if not words:
        return len(texts)
    if len(words) == 1:
        return len([text for text in texts if words[0] not in text])
    return count_steps(semantic)


def _step_texts(semantic: Sequence[_Operation]) -> list[str]:
    return [f"{step.operation}: {step.argument}" for step in semantic]


def _starts(sizes: Numbers) -> Numbers:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])
