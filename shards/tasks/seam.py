"""What a task says about data: which texts a model reads of a visit, and what each of them should lead to."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from shards.format.index import SplitIndex
from shards.format.records import Item, Sample
from shards.plan import EpochOrder

Tower = Literal["answer", "match", "retrieval"]
"""The two text towers of a fusion, and that of page retrieval."""
Labels = Literal["rows", "items"]


class Target(NamedTuple):
    """A text that a decoder should write."""

    text: str
    weight: float


class Row(NamedTuple):
    """One text that reads one image of its visit."""

    text: str
    item: int
    """Position among the items of the visit."""
    image: int = 0
    """Position among the images of the sample: the one that it reads."""
    pair: str | None = None
    """A second text behind a separator; all rows of a block have one, or none has."""
    weight: float = 1.0
    """Of its label in the loss; 0 where there is none."""
    label: int | tuple[tuple[int, float], ...] = 0
    """A class; or, for soft labels, (class, score) of those that score at all."""
    targets: tuple[Target, ...] = ()
    images: tuple[int, ...] = ()
    """Positions of all images that it reads at once, where that is not `image` alone: a window of pages. They ascend
    where a model reads them one behind the other."""
    places: tuple[int, ...] = ()
    """Of the images in `images`, in the item's own window of pages, which `label` counts in."""

    @property
    def all_images(self) -> tuple[int, ...]:
        """Positions of the images that it reads."""
        return self.images or (self.image,)


class Rows(NamedTuple):
    """The rows of a visit by block, each block's in the order of the items."""

    blocks: dict[str, list[Row]]
    missing: int = 0
    """Rows that were asked for and that the data does not offer."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A kind of rows that a task can make."""

    tower: Tower
    """What reads it."""
    rows_per_item: int = 1
    """Rows of an item that a label of the item is decided from, each of them reads another image."""
    paired: bool = False
    """Whether its rows are pairs of texts."""
    labels: Labels = "items"
    """Whether a label belongs to a row or to an item."""
    most_targets: int = 1
    """The most texts that a decoder may be to write behind a row, where it writes any."""


class Visit(NamedTuple):
    """A sample with some of its items."""

    sample: int
    """Its number in the split."""
    items: Sequence[Item]
    numbers: Sequence[int]
    """Of the items over the whole split."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a recipe wants made."""

    blocks: frozenset[str]
    negatives: tuple[str, ...] = ()
    """`losses.negatives`"""
    genome: float = 1.0
    """`losses.genome`"""
    classes: Mapping[str, int] = field(default_factory=dict)
    """The number of each class by its name."""
    pages: int | None = None
    """`data.pages_per_visit`"""
    retrieved: Mapping[str, tuple[str, ...]] | None = None
    """By item id the names of the pages that an evaluation reads, of `data.retrieved`; None reads whole windows."""


class Samples(Protocol):
    """The samples of a split, by their numbers; `shards.format.tar_reader.ShardReader` reads them."""

    def sample(self, sample: int) -> Sample:
        """A whole sample."""
        ...

    def items(self, sample: int, positions: Sequence[int]) -> Sequence[Item]:
        """Items of a sample."""
        ...

    def text_hash(self, sample: int, position: int) -> int:
        """`text_hash` of an item's own text."""
        ...

    def text_hashes(self, sample: int) -> Collection[int]:
        """Those of all items of a sample."""
        ...


class Draw(NamedTuple):
    """Where a task may look for what is not in a visit; all that is random comes from the hashes of the epoch."""

    epoch: EpochOrder
    index: SplitIndex
    samples: Samples
    is_training: bool = False
    """Whether what is read may differ from epoch to epoch; an evaluation compares over epochs."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task, as far as data goes."""

    formats: tuple[str, ...]
    """The annotation formats that its shards are built from."""
    blocks: Mapping[str, Block]
    reads: Mapping[str, str]
    """Part of the loss -> the block that it reads."""
    losses: Mapping[str, float]
    """The weights of the parts where a recipe gives none; a part that is not named has 0."""
    rows: Callable[[Visit, Draw, Wanted], Rows]
    """A pure function; makes the blocks that are wanted."""
    images: int | None = 1
    """Images of a sample; None where samples differ: then a visit shows the images that its rows name."""
    by_window: bool = True
    """Of a task without a fixed number of images: whether items that read other images are shown apart, for a model in
    which all images of a visit stand in front of all of its items."""
    classes: tuple[str, ...] | None = None
    """The names of the classes; None where they are answers of the data set, or where there are none."""
    augments: bool = True
    """Whether its pictures may be turned, moved and recoloured in training: not where labels are places in a picture,
    or where images are told apart by their side."""
    soft_labels: bool = False
    """Whether several classes may be right in part."""
    class_of: Callable[[str], str] = str
    """An answer of the data set -> what it is called as a class."""
