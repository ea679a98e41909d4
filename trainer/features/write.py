"""Writes the tokens of a recipe's frozen encoders beside the shards of a split, tar by tar, on all ranks."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec import convert, to_builtins
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from model.build import BuiltModel
from model.frozen_streams import FrozenStream, stream_tokens
from model.towers.tokenizer import build_tokenizer
from shards.atomic import write_atomically
from shards.build.feature_writer import FeatureTar, discard_unfinished, member_names
from shards.errors import DataError, UserError
from shards.format.features import (
    FeatureIndex,
    FeatureShard,
    Origin,
    TokenLayout,
    Tokens,
    TokenType,
    cache_name,
    encode_feature_index,
    image_counts,
    quantize,
    sound_digest,
)
from shards.format.index import INDEX_NAME
from shards.progress import Progress
from shards.read.collate import Shown, count_images, to_device
from shards.read.every_image import EveryImage, Key, batches_of
from shards.read.loader import Loader
from shards.read.micro_batches import Split
from trainer.build import assemble_model, check_medium, image_size, open_split
from trainer.config import RunConfig
from trainer.engine.deepspeed_config import resolve_precision
from trainer.engine.distributed import World
from trainer.engine.waiting import StoppedError
from trainer.features.places import features_directory, origin_of, streams_to_cache
from trainer.reporting.progress import render_duration

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 16
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_DISK_RESERVE = 0.01
"""Of what will be written: room for the file system's own tables."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A cache that is to be written."""

    stream: FrozenStream
    origin: Origin
    layout: TokenLayout
    directory: Path


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything that encodes a split, on its device."""

    config: RunConfig
    split: Split
    built: BuiltModel
    targets: Sequence[Target]
    never: Sequence[str]
    """Why nothing is kept of other streams."""
    precision: str

    @property
    def counts(self) -> list[int]:
        """Images of each shard."""
        return image_counts(self.split.index)

    @property
    def bytes(self) -> int:
        """Of all caches when they are whole."""
        return sum(target.layout.tar_bytes(images) for target in self.targets for images in self.counts)

    def loader(self, keys: list[Key], device: torch.device) -> Loader:
        """What reads and decodes these batches ahead."""
        images = EveryImage(self.split, self.built.collation, image_size(self.config, self.built), keys)
        return Loader(images, workers=self.config.data.workers, pin_memory=device.type == "cuda")


class Estimate(NamedTuple):
    """What writing will take."""

    bytes: int
    """Still to be written."""
    seconds: float
    seconds_per_image: float
    """Of one rank."""


def prepare(config: RunConfig, name: str, dtype: TokenType, world: World) -> Work:
    """Open a split and load what encodes it.

    Raises:
        UserError: there is no such split, nothing in the recipe is frozen, or a checkpoint is missing or damaged.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    split = open_split(config, name)
    directory = features_directory(config, name)
    built = assemble_model(config, scratch_tokenizer=_no_words, classes=_classes(config))
    streams, never = streams_to_cache(built.objective, image_size(config, built))
    if not streams:
        raise UserError(f"features: {'; '.join(never)}; nothing is left to keep")
    check_medium(config, built, split)
    objective, device = built.objective, world.device
    precision = resolve_precision(config.precision, device.type, too_wide=objective.too_wide_for_fp16)
    if precision == "bf16":
        precision = "fp32"  # fp16 keeps three bits more than bf16 would have left, and other runs may read them
    objective.to(device=device, dtype=_DTYPES[precision]).eval()
    objective.place_frozen(device, _DTYPES[precision])
    work = Work(config=config, split=split, built=built, targets=(), never=never, precision=precision)
    shown = _first_images(work, device, 1)
    targets = []
    for stream in streams:
        origin = origin_of(stream, split.index)
        _, tokens, width = stream_tokens(objective, stream.name, shown).shape
        layout = TokenLayout(key=origin.key(dtype)[:16], dtype=dtype, tokens=tokens, width=width)
        place = directory / cache_name(origin, dtype)
        targets.append(Target(stream=stream, origin=origin, layout=layout, directory=place))
    return replace(work, targets=targets)


def estimate(work: Work, ranks: int, device: torch.device, todo: Sequence[tuple[Target, int]]) -> Estimate:
    """Bytes by arithmetic, time by decoding and encoding a few images: workers decode while a rank encodes.

    Args:
        ranks: how many will share it.
        todo: tars that are missing, as targets and numbers of shards.
    """
    counts = work.counts
    size = sum(target.layout.tar_bytes(counts[shard]) for target, shard in todo)
    shards = {shard for _, shard in todo}
    images = sum(counts[shard] for shard in shards)
    if not images:
        return Estimate(size, 0.0, 0.0)
    began = time.perf_counter()
    shown = _first_images(work, device, IMAGES_AT_ONCE)
    decoding, workers = time.perf_counter() - began, work.config.data.workers
    _encode(work, work.targets, shown)  # the first one makes buffers
    began = time.perf_counter()
    _encode(work, work.targets, shown)
    encoding = time.perf_counter() - began
    each = (max(encoding, decoding / workers) if workers else encoding + decoding) / count_images(shown)
    return Estimate(size, each * images / ranks, each)


def missing_tars(work: Work, shards: Sequence[int]) -> tuple[list[tuple[Target, int]], dict[str, FeatureShard]]:
    """Which tars of these shards are not there or not sound, and the others by their path; reads all of them."""
    todo, sound, counts = [], {}, work.counts
    for target in work.targets:
        for shard in shards:
            path = target.directory / work.split.index.shards[shard].name
            digest = sound_digest(path, target.layout, counts[shard])
            if digest is None:
                todo.append((target, shard))
            else:
                sound[str(path)] = FeatureShard(
                    name=path.name, images=counts[shard], bytes=target.layout.tar_bytes(counts[shard]), sha256=digest
                )
    return todo, sound


def describe(work: Work, expected: Estimate, ranks: int) -> str:
    """One line for a person, before anything is written."""
    images = sum(work.counts)
    places = ", ".join(str(target.directory) for target in work.targets)
    shapes = ", ".join(
        f"{target.stream.name} {target.layout.tokens} x {target.layout.width} {target.layout.dtype}"
        for target in work.targets
    )
    free = shutil.disk_usage(_existing(work.targets[0].directory)).free
    return (
        f"features: {images:,} images, {shapes}: {_size(expected.bytes)} of {_size(work.bytes)} to write "
        f"({_size(free)} free), about {render_duration(expected.seconds)} on {ranks} rank(s), "
        f"{1000 * expected.seconds_per_image:.1f} ms an image; to {places}"
    )


def check_room(work: Work, expected: Estimate) -> None:
    """Whether the disk has room.

    Raises:
        UserError: it has not.
    """
    place = _existing(work.targets[0].directory)
    free, needed = shutil.disk_usage(place).free, int(expected.bytes * (1 + _DISK_RESERVE))
    if free < needed:
        smaller = "" if work.targets[0].layout.dtype == "int8" else ", take --dtype int8 (half of it)"
        raise UserError(
            f"{work.targets[0].directory.parent}: {_size(free)} free, and {_size(needed)} to write; free "
            f"some space{smaller}, or name another disk with --out"
        )


def write_features(work: Work, world: World, *, say: Say, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write what is missing, then the indexes; collective.

    A tar that is there and sound to the byte is kept, so the same call goes on after a kill, and mends damage.

    Raises:
        UserError: on all ranks, if the disk is full on one of them, or an image cannot be read.
        StoppedError: on all ranks, if `stopped` says so on one of them; the tars that are finished stay.
    """
    world.agree_on(lambda: _make_directories(work))
    shards = range(world.rank, len(work.counts), world.world_size)
    todo, sound = missing_tars(work, shards)
    expected = estimate(work, 1, world.device, todo)
    longest, written = world.max_across_ranks(torch.tensor([expected.seconds, len(todo)], dtype=torch.float64)).tolist()
    total = world.sum_across_ranks([float(expected.bytes)])
    if written:
        say(describe(work, expected._replace(bytes=int(total[0]), seconds=longest), world.world_size))
        world.agree_on(lambda: check_room(work, expected._replace(bytes=int(total[0]))))
    sound |= _write_tars(work, todo, world, stopped)
    _write_indexes(work, sound, world)


def _write_tars(
    work: Work, todo: Sequence[tuple[Target, int]], world: World, stopped: Callable[[], bool]
) -> dict[str, FeatureShard]:
    """This rank's tars. After each batch all ranks agree to go on, so that none waits for one that has given up."""
    keys = [key for shard in dict.fromkeys(shard for _, shard in todo) for key in _keys(work, shard)]
    ticks = int(world.max_across_ranks(torch.tensor([len(keys)])).item())
    written: dict[str, FeatureShard] = {}
    error: UserError | None = None
    images = sum(last - first for _, first, last in keys)
    label = "caching" if world.world_size == 1 else f"caching, {world.name} of {world.world_size}"
    with Progress(label, images, "images", show=world.rank == 0 and images > 0) as progress:
        steps = _steps(work, todo, keys, written, world)
        for _ in range(ticks):
            if error is None:
                try:
                    progress.advance(next(steps, 0))
                except UserError as fault:
                    error = fault
                except OSError as fault:
                    error = _disk_error(work, fault)
            halted = stopped()
            if world.any_rank(error is not None or halted):
                steps.close()
                world.agree_or_raise(error)
                raise StoppedError("stopped")
    return written


def _steps(
    work: Work,
    todo: Sequence[tuple[Target, int]],
    keys: list[Key],
    written: dict[str, FeatureShard],
    world: World,
) -> Iterator[int]:
    """Encode batch by batch; gives how many images each has had."""
    batches = work.loader(keys, world.device).batches(keys) if keys else iter(())
    for shard in dict.fromkeys(shard for _, shard in todo):
        targets = [target for target, number in todo if number == shard]
        name = work.split.index.shards[shard].name
        with ExitStack() as files:
            tars = [
                files.enter_context(
                    FeatureTar(
                        target.directory / name,
                        target.layout,
                        list(member_names(work.split.index, shard, target.stream.name)),
                    )
                )
                for target in targets
            ]
            own = _keys(work, shard)
            for number, (_, first, last) in enumerate(own):
                for tar, tokens in zip(tars, _encode(work, targets, next(batches)), strict=True):
                    tar.add(tokens)
                if number == len(own) - 1:
                    finished = {str(target.directory / name): tar for target, tar in zip(targets, tars, strict=True)}
                    written |= {path: tar.finish() for path, tar in finished.items()}
                yield last - first


def _encode(work: Work, targets: Sequence[Target], shown: Shown) -> list[list[Tokens]]:
    """What is kept of a batch of images, by target."""
    placed = to_device(shown, next(work.built.objective.sight.module.parameters()).device)
    found = []
    for target in targets:
        tokens = stream_tokens(work.built.objective, target.stream.name, placed).cpu().numpy()
        try:
            found.append(quantize(tokens, target.layout.dtype))
        except ValueError as error:
            raise DataError(f"model.{target.stream.name}: the encoder gives {error}") from None
    return found


def _write_indexes(work: Work, sound: dict[str, FeatureShard], world: World) -> None:
    """Rank 0 writes the index of each cache, when every tar of all ranks is where it looks."""
    texts = world.gather_text(json.dumps({path: to_builtins(shard) for path, shard in sound.items()}))

    def write() -> None:
        if texts is None:
            return
        everything = {path: convert(shard, FeatureShard) for text in texts for path, shard in json.loads(text).items()}
        for target in work.targets:
            paths = [target.directory / shard.name for shard in work.split.index.shards]
            absent = next((path for path in paths if not path.is_file()), None)
            if absent is not None:
                raise DataError(
                    f"{absent}: was written by another rank and is not on this one's disk; name a directory that all "
                    "hosts share with --out"
                )
            index = FeatureIndex(
                origin=target.origin,
                layout=target.layout,
                precision=work.precision,
                shards=[everything[str(path)] for path in paths],
            )
            try:
                write_atomically(target.directory / INDEX_NAME, encode_feature_index(index))
            except OSError as error:
                raise _disk_error(work, error) from None

    world.agree_on(write)


def _make_directories(work: Work) -> None:
    for target in work.targets:
        try:
            target.directory.mkdir(parents=True, exist_ok=True)
            discard_unfinished(target.directory)
        except OSError as error:
            raise UserError(
                f"{target.directory}: cannot be written: {error.strerror}; name another directory with --out"
            ) from None


def _disk_error(work: Work, error: OSError) -> UserError:
    return UserError(
        f"{work.targets[0].directory.parent}: {error.strerror}; finished tars stay: see to this disk (or name another "
        "with --out), and the same command goes on from there"
    )


def _keys(work: Work, shard: int) -> list[Key]:
    return batches_of(shard, work.counts[shard], IMAGES_AT_ONCE)


def _first_images(work: Work, device: torch.device, number: int) -> Shown:
    """A few images, read in this process."""
    shard = next(shard for shard, images in enumerate(work.counts) if images)
    key = (shard, 0, min(number, work.counts[shard]))
    images = EveryImage(work.split, work.built.collation, image_size(work.config, work.built), [key])
    (shown,) = Loader(images, workers=0, pin_memory=False).batches([key])
    return to_device(shown, device)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _existing(directory: Path) -> Path:
    """The nearest directory above that is there."""
    return next(place for place in (directory, *directory.resolve().parents) if place.is_dir())


def _no_words() -> PreTrainedTokenizerBase:
    """Texts are nothing to an image encoder: no training split is read for the words of `scratch` towers."""
    return build_tokenizer(["nothing"], vocab_size=16)


def _classes(config: RunConfig) -> tuple[str, ...]:
    """Any, where a head names some: what it says is nothing to an encoder either."""
    return () if config.losses.classify == 0 and config.answers.by != "rank" else ("nothing",)
