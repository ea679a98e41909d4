"""Which cached tokens a run reads in the place of images, and the line that says so."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from model.frozen_streams import FrozenStream
from model.fusion_objective import FusionObjective
from shards.errors import ConfigError
from shards.format.features import Stream
from shards.read.features import CachedSight, FeatureCache
from shards.read.micro_batches import Split
from trainer.build import AnyBuilt, image_size
from trainer.config import RunConfig
from trainer.engine.distributed import World
from trainer.features.places import Found, features_directory, find_caches, has_caches, streams_to_cache

logger = logging.getLogger(__name__)


class Streams(NamedTuple):
    """The streams of a model, looked at before its weights are cast."""

    frozen: Sequence[FrozenStream]
    never: Sequence[str]
    """Why nothing is kept of the others."""


def cacheable_streams(config: RunConfig, built: AnyBuilt, splits: Sequence[str], world: World) -> Streams | None:
    """The streams whose cached tokens a run may read; None where it reads none. Collective.

    Args:
        splits: which it reads.

    Raises:
        ConfigError: `data.features: require`, and nothing of this model can be kept.
    """
    return world.agree_on(lambda: streams_of(config, built)) if wants_caches(config, splits, world) else None


def wants_caches(config: RunConfig, splits: Sequence[str], world: World) -> bool:
    """Whether a cache of one of these splits is on some rank, or required. Collective."""
    if config.data.features == "auto":
        return world.any_rank(any(has_caches(config, split) for split in splits))
    return config.data.features == "require"


def streams_of(config: RunConfig, built: AnyBuilt) -> Streams | None:
    """The streams of a model that can be kept; None where the model has none. Reads all of their weights.

    Raises:
        ConfigError: `data.features: require`, and nothing of this model can be kept.
    """
    if not isinstance(built.objective, FusionObjective) and config.data.features != "require":
        return None
    return Streams(*streams_to_cache(built.objective, image_size(config, built)))


def cached_sight(
    config: RunConfig,
    name: str,
    split: Split,
    streams: Streams | None,
    built: AnyBuilt,
    world: World,
    *,
    tell: Callable[[str], None] = logger.info,
) -> CachedSight | None:
    """The cached tokens that the loader of a split reads; None where it reads images. Collective; says what it does.

    All ranks read the same: a cache that one of them does not see is used by none.

    Args:
        name: of the split.
        tell: shows the line that says what is read.

    Raises:
        ConfigError: on all ranks, where `data.features: require` and the caches do not hold every frozen stream.
    """
    if streams is None:
        return None
    if name == "train" and config.data.augment is not None:
        return _refuse_or_say(config, world, [f"data.augment={config.data.augment} changes pictures, never kept"], name)
    found = Found({}, [])
    if has_caches(config, name):
        found = find_caches(features_directory(config, name), streams.frozen, split.index)
    fitting = found.fitting
    common = _on_all_ranks(sorted(f"{stream} {path.name}" for stream, (path, _) in fitting.items()), world)
    kept = {stream: place for stream, place in fitting.items() if f"{stream} {place[0].name}" in common}
    missing = [stream.name for stream in streams.frozen if stream.name not in kept]
    why = list(found.refused)
    why += [f"{fitting[stream][0]}: not every rank sees it" for stream in fitting if stream not in kept]
    if missing and not why:
        why = [f"no tokens of model.{stream} are kept for {split.directory}" for stream in missing]
    why = [*why, *streams.never]
    if (missing and config.data.features == "require") or not kept:
        return _refuse_or_say(config, world, why, name)
    total = sum(index.bytes for _, index in kept.values())
    encoded = f"; {'; '.join(why)}: encoded from images" if why else ""
    said = ", ".join(f"{stream} from {path}" for stream, (path, _) in kept.items())
    tell(f"features: {name} reads cached tokens ({total / 1e9:.1f} GB): {said}{encoded}")
    caches: dict[Stream, FeatureCache] = {stream: FeatureCache(path, index) for stream, (path, index) in kept.items()}
    towers = [stream for stream in ("vision", "second_stream") if built.objective.tower(stream) is not None]
    return CachedSight(caches, is_whole=len(caches) == len(towers))


def described(sights: dict[str, CachedSight | None]) -> str:
    """The caches that a run reads by split, for its checkpoints; nothing where it reads none."""
    names = {
        split: sorted(cache.directory.name for cache in sight.caches.values())
        for split, sight in sights.items()
        if sight is not None
    }
    return json.dumps(names, sort_keys=True) if names else ""


def _refuse_or_say(config: RunConfig, world: World, why: Sequence[str], name: str) -> None:
    if config.data.features != "require":
        logger.warning("features: %s is encoded from images: %s", name, "; ".join(why))
        return

    def refuse() -> None:
        raise ConfigError(
            f"data.features: require, but {name}: {'; '.join(why)}; write them with `duoflow features cache RECIPE "
            f"--split {name}`, or set data.features=auto"
        )

    world.agree_on(refuse)


def _on_all_ranks(names: list[str], world: World) -> set[str]:
    everything = world.gather_text(json.dumps(names))
    common = None
    if everything is not None:
        common = json.dumps(sorted(set.intersection(*(set(json.loads(text)) for text in everything))))
    return set(json.loads(world.broadcast_text(common)))
