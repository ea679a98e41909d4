"""What all ranks must have alike before the first step: code, packages, recipe, shards, weights.

Each rank sends one digest per matter, a few hundred bytes. Only where digests differ it sends what is behind them, from
which rank 0 makes a table that names the hosts and what differs. So agreement costs no more than two small collectives.
"""

import hashlib
import importlib
import json
import os
import platform
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.objective import Built
from shards.errors import ConfigError, DataError
from shards.format.index import SplitIndex, index_digest
from shards.remote.address import is_url
from trainer.config import RunConfig
from trainer.config.faults import leaf_keys
from trainer.config.schema import policy_path
from trainer.config.yaml_text import format_value
from trainer.engine.distributed import World, known_to_all
from trainer.engine.policy_choice import AUTO

PACKAGES = ("torch", "torchvision", "deepspeed", "transformers", "timm", "numpy", "peft", "safetensors", "pillow")
"""What computes a step, or the bytes that go into it."""
PACKAGES_OF_OURS = ("shards", "model", "trainer", "launch")
NAMED = 6
"""Differences that a table names for each host and matter."""

Facts = Mapping[str, Mapping[str, str]]
"""By matter (code, packages, ...) what a rank has, by name."""


def agree_on_start(config: RunConfig, world: World) -> None:
    """Whether code, packages, recipe and indexes are the same on all ranks; collective.

    Raises:
        ConfigError: on all ranks, a table of what differs.
    """
    if world.world_size > 1:
        makers = {"code": code, "packages": packages, "recipe": partial(recipe, config), "data": partial(data, config)}
        compare_facts(world, world.agree_on(lambda: {matter: make() for matter, make in makers.items()}))


def agree_on_weights(built: Built, world: World) -> None:
    """Whether frozen weights, answers and tokenizers are the same on all ranks; collective.

    Raises:
        ConfigError: on all ranks, a table of what differs.
    """
    if world.world_size > 1:
        frozen = {
            name: digest for part, tower in built.objective.frozen_towers() for name, digest in _sums(part, tower)
        }
        compare_facts(world, {"frozen weights": frozen, "words": _words(built)})


def check_shards(index: SplitIndex, key: str, directory: str) -> None:
    """Whether every shard of a split is there, in its size: one look at the directory, and no byte of a shard.

    A rank reads them all in the course of its epochs. Shards behind a URL are looked at when they are fetched.

    Raises:
        DataError: names the first that is not.
    """
    if is_url(directory):
        return
    there = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
    wrong = [shard for shard in index.shards if there.get(shard.name) != shard.bytes]
    if not wrong:
        return
    found = "is missing" if wrong[0].name not in there else f"has {there[wrong[0].name]} bytes"
    more = f" ({len(wrong)} of {len(index.shards)} shards are not as they were built)" if len(wrong) > 1 else ""
    raise DataError(
        f"{key}: {directory}/{wrong[0].name} {found}; expected {wrong[0].bytes} bytes{more}; copy the shards "
        "again, or build them"
    )


def compare_facts(world: World, facts: Facts) -> None:
    """Compare what all ranks have; collective.

    Raises:
        ConfigError: on all ranks, a table of what differs.
    """
    digests = world.gather_text(json.dumps({matter: _digest(of) for matter, of in facts.items()}))
    differing = None
    if digests is not None:
        known = [json.loads(text) for text in digests]
        differing = [matter for matter in facts if any(other[matter] != known[0][matter] for other in known)]
    differing = json.loads(world.broadcast_text(None if differing is None else json.dumps(differing)))
    if not differing:
        return
    everything = world.gather_text(json.dumps({matter: facts[matter] for matter in differing}))
    table = None
    if everything is not None:
        names = world.hosts if len(set(world.hosts)) > 1 else [world.called(rank) for rank in range(world.world_size)]
        table = difference_table([json.loads(text) for text in everything], names)
    raise known_to_all(ConfigError(world.broadcast_text(table)))


def difference_table(facts: Sequence[Facts], hosts: Sequence[str]) -> str:
    """What hosts have other than that of rank 0, a line each; pure.

    Args:
        facts: of each rank.
        hosts: where each is.
    """
    lines: dict[str, None] = {}  # in order, and each once: the ranks of a host have the same to say
    for rank in range(1, len(facts)):
        for matter, own in facts[rank].items():
            first = facts[0][matter]
            names = sorted(name for name in own.keys() | first.keys() if own.get(name) != first.get(name))
            said = [f"{name}: {_shown(own, name)}; {hosts[0]} has {_shown(first, name)}" for name in names[:NAMED]]
            if len(names) > NAMED:
                said.append(f"and {len(names) - NAMED} more")
            lines |= dict.fromkeys(f"  {hosts[rank]:<12} {matter:<14} {text}" for text in said)
    others = sorted({hosts[rank] for rank in range(1, len(facts)) if facts[rank] != facts[0]})
    remedy = "give every host the same, and run the same command again"
    return "\n".join([f"{', '.join(others)} differ from {hosts[0]}, where rank 0 is; {remedy}:", *lines])


def _shown(of: Mapping[str, str], name: str) -> str:
    return of.get(name, "nothing")


def _digest(of: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def code() -> dict[str, str]:
    """A digest of every file of ours that a rank may import, from where it imports them: 250 files, some 20 ms."""
    found = {}
    for package in PACKAGES_OF_OURS:
        (home,) = importlib.import_module(package).__path__
        files = sorted(Path(home).rglob("*.py"))
        found |= {f"{package}/{file.relative_to(home)}": _file_digest(file) for file in files}
    return found


def packages() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def recipe(config: RunConfig) -> dict[str, str]:
    """Every value of the resolved recipe, and its ZeRO policy by content.

    Raises:
        ConfigError: there is no such policy here.
    """
    values = {key: format_value(_value(config, key)) for key in leaf_keys(RunConfig)}
    if config.engine.policy == AUTO:  # chosen for all ranks together, when they have met
        return values
    return values | {f"engine.policy: {config.engine.policy}": _file_digest(policy_path(config))}


def data(config: RunConfig) -> dict[str, str]:
    """The indexes of the splits that a rank reads: they hold the sha256 of every shard."""

    def digest(directory: str) -> str:
        try:
            return index_digest(directory)[:12]
        except OSError:
            return "no index"

    named = {f"data.{name}": getattr(config.data, name) for name in ("train", "val")}
    return {f"{key}: {path}": digest(path) for key, path in named.items() if path is not None}


def _value(config: RunConfig, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _sums(part: str, tower: nn.Module) -> list[tuple[str, str]]:
    """A checksum of each frozen tensor as it was loaded: whatever files it came from.

    CRC-32 tells apart what chance changes, at some 2 GB/s and core: half a second for both of BLIP's checkpoints.
    """
    tensors = [*tower.named_parameters(), *tower.named_buffers()]
    return [(f"{part}.{name}", _checksum(tensor)) for name, tensor in tensors if not tensor.requires_grad]


def _checksum(tensor: torch.Tensor) -> str:
    raw: np.ndarray = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{list(tensor.shape)} {zlib.crc32(raw):08x}"


def _words(built: Built) -> dict[str, str]:
    """What turns texts and answers into numbers."""
    found = {
        f"vocabulary of model.{name}": _digest(tokenizer.get_vocab())[:12]
        for name, tokenizer in built.tokenizers.items()
    }
    return found | {"answers and classes": hashlib.sha256("\n".join(built.classes).encode()).hexdigest()[:12]}
