"""What every annotation reader gives: one question, and the image that it is about."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.annotations.scene_graphs import SceneGraphs
from shards.format.records import Question


class Annotation(NamedTuple):
    """One question of an annotation file."""

    image_id: str
    image_ref: str
    """The image's file below the image directory, up to one of the reader's endings."""
    question: Question


class Reader(NamedTuple):
    """How one annotation format is read."""

    expand: Callable[[Sequence[Path]], list[Path]]
    """The files that the given paths stand for."""
    read: Callable[[Path, SceneGraphs, Callable[[int], object]], Iterator[Annotation]]
    """(file, scenes, advance) -> its questions, one at a time; `advance` is told the bytes read."""
    endings: tuple[str, ...]
    """What may follow an image_ref in the image directory, in order of preference."""
