"""What the loader hands out: a batch of tensors with what is known of it on the host, or what went wrong."""

from typing import NamedTuple

from shards.format.records import Item
from shards.read.collation import AnyBatch


class MicroBatch(NamedTuple):
    """A batch and what is known about it on the host."""

    batch: AnyBatch
    num_items: int
    """Items (questions, statements) of this micro-batch, padding excluded."""
    items_cut: int
    """Of these, how many were longer than max_question_tokens."""
    rows_missing: int
    """Rows that were asked for and that the data does not offer, such as negatives: they have weight 0."""
    items: tuple[Item, ...]
    """The items by their number in the blocks, for scoring; empty in training."""
    item_images: tuple[int, ...]
    """The number of the first image of each of `items` in the order in which the batch has them."""
    samples: tuple[int, ...]
    """The number of each sample, in the order of its images in the batch."""
    num_visits: int
    """Visits, padding excluded: an evaluation joins those of a sample."""
    notes: tuple[str, ...] = ()
    """What somebody should know of how it was made."""


class Fault(NamedTuple):
    """A user's error on its way out of a worker: raising there would bury the message in a traceback."""

    message: str
