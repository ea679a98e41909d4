"""SNLI-VE: does a hypothesis follow from an image, contradict it, or neither?"""

from shards.annotations.snli_ve import LABELS
from shards.tasks.seam import Block, TaskData
from shards.tasks.statements import about_one

DATA = TaskData(
    formats=("snli_ve",),
    blocks={"statement": Block(tower="match")},
    reads={"classify": "statement"},
    losses={"classify": 1.0},
    rows=about_one,
    classes=LABELS,
)
