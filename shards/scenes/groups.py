"""Sets whose scenes come in groups that share what is said of them, as NLVR2's and SNLI-VE's do."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.scenes.raster import encode_png
from shards.scenes.world import part_of


class Group(NamedTuple):
    """Scenes that belong together, all in one split."""

    split: str
    pictures: Iterable[tuple[str, NDArray[np.uint8]]]
    """Image id and pixels of each scene."""
    records: Iterable[dict[str, Any]]
    """What is said of them."""


def whole_groups(num_images: int, size: int, splits: tuple[str, ...]) -> Counter[str]:
    """How many images each split gets; those that would not make a whole group are left out."""
    counts = Counter(splits[part_of(number)] for number in range(num_images // size))
    return Counter({split: size * count for split, count in counts.items()})


def group_files(groups: Iterable[Group], names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every image, then of every split's file with a record per line.

    Args:
        names: of the splits' files.
    """
    lines: dict[str, list[bytes]] = {split: [] for split in names}
    for group in groups:
        for image_id, pixels in group.pictures:
            yield f"images/{image_id}.png", encode_png(pixels)
        lines[group.split] += map(msgspec.json.encode, group.records)
    for split in sorted(names):
        yield names[split], b"".join(line + b"\n" for line in lines[split])
