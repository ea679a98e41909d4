"""NLVR2: is a statement true of two images? It is read with each of them, and the label is decided from both."""

from shards.tasks.seam import Block, TaskData
from shards.tasks.statements import about_two

DATA = TaskData(
    formats=("nlvr2", "lxmert_nlvr2"),
    blocks={"statement": Block(tower="match", rows_per_item=2)},
    reads={"classify": "statement"},
    losses={"classify": 1.0},
    rows=about_two,
    images=2,
    augments=False,
    classes=("False", "True"),
)
