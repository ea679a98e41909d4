"""The annotation formats that shards can be built from: READERS is the only list of them."""

from shards.annotations import gqa, table
from shards.annotations.seam import Annotation, Reader

READERS: dict[str, Reader] = {
    "gqa": Reader(gqa.expand, gqa.read, gqa.ENDINGS),
    "jsonl": Reader(list, table.read_jsonl, ("",)),
    "csv": Reader(list, table.read_csv, ("",)),
}

__all__ = ["READERS", "Annotation", "Reader"]
