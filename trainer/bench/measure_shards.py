"""Measures what the number of questions and images costs: `-m trainer.bench.measure_shards group|open DIR`.

Each in a process of its own: what one has had before would be counted as its memory.
"""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from shards.build.build_request import BuildRequest
from shards.build.grouping import Grouping
from shards.build.writer import read_and_group
from shards.format.columns import COLUMNS_NAME, Columns, ItemColumns, write_columns
from shards.format.index import INDEX_NAME, Shard, SplitIndex, encode_index, open_index, read_index
from shards.plan import Order
from trainer.bench.gqa_chunk import synthesise

_WATCH_SECONDS = 0.05
_PER_SHARD = 2_500
"""Images of a shard of 256 MB."""
_STEPS = 50
_WRITTEN_AT_ONCE = 1 << 20


class Grouped(NamedTuple):
    """What reading and grouping took."""

    chunks: int
    annotation_bytes: int
    images: int
    questions: int
    read_seconds: float
    walk_seconds: float
    table_bytes: int
    peak_bytes: int


class Opened(NamedTuple):
    """What an index costs a process that trains."""

    images: int
    questions: int
    columns_bytes: int
    open_seconds: float
    order_seconds: float
    first_step_seconds: float
    seek_seconds: float
    step_seconds: float
    sent_bytes: int
    own_bytes: int
    """Memory that no other process can share: not that of the mapped file."""


def measure_grouping(scratch: Path, chunks: int, size: int, report: Callable[[str], None] = lambda _: None) -> Grouped:
    """Read and group chunks of so many bytes each, as a build does."""
    folder = scratch / "chunks"
    folder.mkdir()
    for number in range(chunks):
        report(f"writing chunk {number + 1} of {chunks}")
        synthesise(folder / f"train_all_questions_{number}.json", size, seed=number)
    found = _in_a_process("group", scratch)
    return Grouped(chunks=chunks, annotation_bytes=sum(path.stat().st_size for path in folder.iterdir()), **found)


def measure_opening(scratch: Path, images: int, questions_per_image: int) -> Opened:
    """Open an index of so many images, of which nothing else is there."""
    directory = scratch / "index"
    directory.mkdir()
    write_index(directory, images, questions_per_image)
    found = _in_a_process("open", scratch)
    size = (directory / COLUMNS_NAME).stat().st_size
    found.pop("peak_bytes")
    return Opened(images=images, questions=images * questions_per_image, columns_bytes=size, **found)


def write_index(directory: Path, images: int, questions_per_image: int) -> None:
    """An index and its columns, without shards."""
    every = np.arange(images + 1, dtype="<i8")
    edges = np.append(every[:-1:_PER_SHARD], images)
    lists = {field: [] for field in Shard.__struct_fields__ if field not in ("name", "bytes", "sha256")}
    lists["images_per_sample"] = msgspec.UNSET
    shards = [
        Shard(name=f"{number:06d}.tar", bytes=256 << 20, sha256="0" * 64, **lists) for number in range(len(edges) - 1)
    ]
    index = SplitIndex(
        reader="gqa",
        sources=[],
        options={},
        counts={"images": images, "questions": images * questions_per_image, "answered": 0},
        answers={},
        groups={},
        shards=shards,
    )
    (directory / INDEX_NAME).write_bytes(encode_index(index))
    columns = Columns(
        first_sample=edges,
        json_offset=every[:-1] % _PER_SHARD * 100_000,
        json_bytes=np.full(images, 500 * questions_per_image, "<u4"),
        num_items=np.full(images, questions_per_image, "<i4"),
        first_item=every * questions_per_image,
        first_image=None,
        image_offset=every[:-1] % _PER_SHARD * 100_000,
        image_bytes=np.full(images, 60_000, "<u4"),
        id_end=every * 7,
        ids=np.full(images * 7, ord("1"), "u1"),
    )
    total = images * questions_per_image
    sizes = [min(_WRITTEN_AT_ONCE, total - start) for start in range(0, total, _WRITTEN_AT_ONCE)]
    write_columns(
        directory / COLUMNS_NAME,
        columns,
        (ItemColumns(bytes(4 * size), bytes(8 * size)) for size in sizes),
        index=encode_index(index),
        digest=read_index(directory).digest,
        file_sha256="0" * 64,
    )


def group(scratch: Path) -> dict[str, float]:
    """Read and group as a build does, and go through the result."""
    folder = scratch / "chunks"
    files = sorted(folder.iterdir())
    request = BuildRequest(
        format="gqa", questions=files, images=folder, out=scratch / "out", workers=len(os.sched_getaffinity(0))
    )
    start = time.perf_counter()
    table = scratch / "questions.sqlite"
    with Grouping(table) as grouping:
        read_and_group(request, files, grouping, scratch)
        read = time.perf_counter()
        sizes = [len(found.items) for found in grouping.groups()]
        walked = time.perf_counter()
        size = table.stat().st_size
    return {
        "images": len(sizes),
        "questions": sum(sizes),
        "read_seconds": read - start,
        "walk_seconds": walked - read,
        "table_bytes": size,
    }


def open_and_seek(scratch: Path) -> dict[str, float]:
    """Open the index as a rank does, and go to steps of its first epoch."""
    from shards.read.micro_batches import Split  # it imports torch, whose memory is not that of annotations

    order = Order(seed=1, questions_per_visit=16, visits_per_step=512, lanes=64, shuffle_shards=8)
    before, marks = _own_bytes(), [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    split = Split(str(scratch / "index"), order)
    mark()
    epoch = split.epoch(0)
    steps = epoch.num_steps
    mark()
    epoch.questions_in_step(0)
    mark()
    epoch.questions_in_step(steps // 2)
    mark()
    for step in range(_STEPS):
        epoch.questions_in_step(steps // 2 + 1 + step)
    mark()
    opened, ordered, first, sought, further = np.diff(marks).tolist()
    return {
        "open_seconds": opened,
        "order_seconds": ordered,
        "first_step_seconds": first,
        "seek_seconds": sought,
        "step_seconds": further / _STEPS,
        "sent_bytes": len(pickle.dumps(open_index(scratch / "index"))),
        "own_bytes": _own_bytes() - before,
    }


def resident_bytes(process: int) -> int:
    """Resident memory of a process and all below it; those that are gone count as 0."""
    total, pending = 0, [process]
    while pending:
        current = pending.pop()
        try:
            total += int(Path(f"/proc/{current}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{current}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return total


def _own_bytes() -> int:
    """Resident memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found) * 1024


def _in_a_process(what: str, scratch: Path) -> dict[str, float]:
    child = subprocess.Popen(
        [sys.executable, "-m", "trainer.bench.measure_shards", what, str(scratch)], stdout=subprocess.PIPE
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, resident_bytes(child.pid))
        time.sleep(_WATCH_SECONDS)
    answer = child.stdout.read()
    if child.returncode != 0:
        raise SystemExit(child.returncode)
    return {**json.loads(answer), "peak_bytes": peak}


if __name__ == "__main__":
    print(json.dumps({"group": group, "open": open_and_seek}[sys.argv[1]](Path(sys.argv[2]))))
