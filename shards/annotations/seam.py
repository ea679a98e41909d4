"""What every annotation reader gives: one item, and the images that it is about."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from shards.format.records import Item, Sample

Advance = Callable[[int], object]
"""Is told the number of bytes read since the last call."""
Option = Literal["scene_graphs", "annotations", "ocr", "balanced_only", "lowercase_answers"]
"""What a build can be asked for beyond what every format takes."""


class Annotation(NamedTuple):
    """One item of an annotation file."""

    sample_id: str
    refs: tuple[str, ...]
    """The files of the sample's images below the image directory, each up to one of the reader's endings."""
    item: Item


class Beside:
    """What lies beside the question files and is looked up for each question. This one is empty."""

    def finish(self) -> None:
        """Called behind the last question: raises DataError if there is something that belongs to none."""

    def close(self) -> None:
        """Let go of files."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one annotation format is read."""

    item: type[msgspec.Struct]
    """Of what its files hold."""
    sample: type[Sample]
    """What the JSON members of its shards say."""
    read: Callable[[Path, Any, Advance], Iterator[Annotation]]
    """(file, what lies beside it, advance) -> its items, one at a time."""
    endings: tuple[str, ...] = ("",)
    """What may follow a ref in the image directory, in order of preference."""
    expand: Callable[[Sequence[Path]], list[Path]] = list
    """The files that the given paths stand for."""
    beside: Callable[[Sequence[Path], Path, Advance], Beside] = lambda *_: Beside()
    """(files, where a table may go, advance) -> what is looked up in them."""
    options: frozenset[Option] = frozenset()
    """Those that it takes."""
    join: Callable[[Iterable[tuple[str, ...]]], tuple[str, ...]] | None = None
    """(the files that each item of a sample is about) -> those of the sample; None where all are about the same."""
    settle: Callable[[Sequence[Path]], str | None] = lambda _: None
    """(files) -> the name of the format that they are of, where a name stands for several."""

    def decode_item(self, data: bytes) -> Item:
        """An item from its JSON."""
        return msgspec.json.decode(data, type=self.item)
