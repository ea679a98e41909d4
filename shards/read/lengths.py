"""How long the questions of each image are, in words: what micro-batches are packed by."""

import re

import numpy as np

from shards.micro_batches import Ints
from shards.read.micro_batches import Split

SPECIAL_TOKENS = 2
"""In front of a question and behind it."""
_WORD = re.compile(r"\w+|[^\w\s]")


def tokens_of(text: str) -> int:
    """A word or a mark is a token; a tokenizer that cuts rare words makes a few more of them."""
    return len(_WORD.findall(text)) + SPECIAL_TOKENS


def longest_questions(split: Split, *, most: int, rank: int = 0, world_size: int = 1) -> Ints:
    """(images,) tokens of the longest text of each image in use, and 0 of the others; reads every sample's JSON once.

    Args:
        most: longer ones are cut there.
        rank: reads its part of the images alone; those of other ranks are 0.
    """
    longest = np.zeros(split.index.num_images, np.int64)
    used = np.flatnonzero(split.visits.num_questions)
    first, last = (len(used) * number // world_size for number in (rank, rank + 1))  # neighbours lie in the same shards
    for image in used[first:last].tolist():
        items = split.reader.sample(image).items
        longest[image] = min(most, max(tokens_of(text) for item in items for text in item.texts))
    return longest
