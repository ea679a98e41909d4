"""Where the caches of a split lie, which of them fit, and why the others do not."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from model.frozen_streams import FrozenStream, frozen_streams
from model.fusion_objective import FusionObjective
from shards.errors import ConfigError, DataError
from shards.format.features import (
    FeatureIndex,
    Origin,
    Stream,
    TokenType,
    cache_name,
    image_counts,
    images_digest,
    read_feature_index,
    size_fault,
)
from shards.format.index import SplitIndex
from shards.remote.address import is_url
from trainer.config import RunConfig

DIRECTORY = "features"
_PREFERRED: tuple[TokenType, ...] = ("fp16", "int8")
"""The more exact one first."""


class Found(NamedTuple):
    """The caches of a split, for one model."""

    fitting: dict[Stream, tuple[Path, FeatureIndex]]
    refused: list[str]
    """Streams for which there are caches and none fits: one of them, and why."""


def features_directory(config: RunConfig, split: str) -> Path:
    """The directory of the caches of a split; it need not be there.

    Raises:
        ConfigError: the shards lie behind a URL, and no directory is named.
    """
    place = getattr(config.data, split)
    if config.data.features_directory is not None:
        return Path(config.data.features_directory).expanduser() / split
    if is_url(place):
        raise ConfigError(
            f"data.features_directory: is not set, and nothing can be written beside {place}; name a directory"
        )
    return Path(place) / DIRECTORY


def has_caches(config: RunConfig, split: str) -> bool:
    """Whether there is anything to look at."""
    if config.data.features_directory is None and is_url(getattr(config.data, split)):
        return False
    return features_directory(config, split).is_dir()


def origin_of(stream: FrozenStream, index: SplitIndex) -> Origin:
    """What the tokens of a stream depend on, for a split."""
    return Origin(
        stream=stream.name,
        weights=stream.weights,
        preprocessing=stream.preprocessing,
        images=images_digest(index),
    )


def find_caches(directory: Path, streams: Sequence[FrozenStream], index: SplitIndex) -> Found:
    """Look at the caches of a split: their indexes and the sizes of their tars, but no tokens."""
    found, counts = Found({}, []), image_counts(index)
    for stream in streams:
        origin = origin_of(stream, index)
        faults = {}
        for dtype in _PREFERRED:
            path = directory / cache_name(origin, dtype)
            if not path.is_dir():
                continue
            try:
                cache = read_feature_index(path)
            except DataError as error:
                faults[path] = str(error)
                continue
            fault = origin.difference(cache.origin) or size_fault(path, cache, counts)
            if fault is None:
                found.fitting[stream.name] = (path, cache)
                break
            faults[path] = fault
        if stream.name not in found.fitting:
            faults = faults or _faults_of_others(directory, origin)
            found.refused.extend(f"{path}: {fault}" for path, fault in list(faults.items())[:1])
    return found


def streams_to_cache(objective: object, image_size: int | None) -> tuple[list[FrozenStream], list[str]]:
    """The frozen streams of a model, and for the others why nothing is kept of them.

    Raises:
        ConfigError: it has none, and never will.
    """
    if not isinstance(objective, FusionObjective):
        raise ConfigError(
            "features: this recipe has no stream of a fusion whose tokens could be kept; it needs none of this"
        )
    streams = frozen_streams(objective, image_size)
    names = {stream.name for stream in streams}
    there = [name for name in ("vision", "second_stream") if objective.tower(name) is not None]
    return streams, [f"model.{name} is trained, and its tokens are never kept" for name in there if name not in names]


def _faults_of_others(directory: Path, origin: Origin) -> dict[Path, str]:
    """What keeps the caches of this stream that have another name from fitting, the newest first."""
    faults = {}
    candidates = [path for path in directory.glob(f"{origin.stream}.*") if path.is_dir()]
    for path in sorted(candidates, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            faults[path] = origin.difference(read_feature_index(path).origin) or "it has another name than its content"
        except DataError as error:
            faults[path] = str(error)
    return faults
