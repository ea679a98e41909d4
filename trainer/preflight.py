"""Minutes before hours: everything about a run that can be found wrong without starting it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from launch.local import count_gpus
from model.config import ModelConfig, local_directory
from shards.errors import ConfigError, UserError
from shards.index import SplitIndex, read_index
from trainer.config import RunConfig, check_world_size, policy_path


class Machine(NamedTuple):
    """What a run gets of this machine."""

    processes: int
    """Ranks."""
    gpus: int
    """GPUs that are there; 0 computes on the CPU."""
    gpu_numbers: tuple[str, ...]
    """Which of them, one per rank; empty is the first ones."""


def preflight(config: RunConfig) -> Machine:
    """Check files, shards and batch sizes, and say how many ranks will run.

    Raises:
        UserError: what is wrong, with its key; the first fault found.
    """
    machine = plan_machine(config, os.environ)
    check_world_size(config, machine.processes)
    _check_data(config)
    _check_policy(config)
    _check_weights(config)
    return machine


def plan_machine(config: RunConfig, environment: Mapping[str, str]) -> Machine:
    """Ranks on this machine: as many as the recipe says, else one per visible GPU, else one.

    Raises:
        ConfigError: more ranks than GPUs, or GPUs named by something that the launcher cannot read.
    """
    gpus = count_gpus(environment)
    processes = config.engine.processes or max(1, gpus)
    if gpus and processes > gpus:
        raise ConfigError(
            f"engine.processes: {processes} ranks need a GPU each, and there are {gpus}; set it to {gpus} or less"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES", "") if gpus else ""
    numbers = tuple(filter(None, visible.replace(" ", "").split(",")))[:processes]
    if not all(number.isdecimal() for number in numbers):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible}: the deepspeed launcher reads numbers only, such as 0,1; set numbers, or "
            "start one process with `python -m trainer.train RECIPE`"
        )
    return Machine(processes, gpus, numbers)


def _check_data(config: RunConfig) -> None:
    if config.data.train is None:
        raise ConfigError("data.train: is not set; name a directory of shards built with `duoflow shards build`")
    for key, directory in (("data.train", config.data.train), ("data.val", config.data.val)):
        if directory is None:
            continue
        index = _read_index(key, directory)
        if index.counts.get("answered", 0) == 0:
            raise ConfigError(f"{key}: {directory}: no question has an answer; training and validation need answers")


def _read_index(key: str, directory: str) -> SplitIndex:
    try:
        return read_index(directory)
    except UserError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_policy(config: RunConfig) -> None:
    from trainer.deepspeed_config import read_policy  # imports torch: nothing before it should wait for that

    read_policy(policy_path(config))


def _check_weights(config: RunConfig) -> None:
    if config.initialize_from is not None and not Path(config.initialize_from).exists():
        raise ConfigError(
            f"initialize_from: {config.initialize_from}: no such file or directory; name a run directory, a checkpoint "
            "or an export, or null"
        )
    checkpoint = config.model.efficient_sam.checkpoint
    if (
        config.model.second_stream.startswith("efficient_sam")
        and checkpoint is not None
        and not Path(checkpoint).is_file()
    ):
        raise ConfigError(
            f"model.efficient_sam.checkpoint: {checkpoint}: no such file; expected the official weights, such as "
            "efficient_sam_vitt.pt; `duoflow doctor RECIPE` says where they are"
        )
    second = {"second_vision"} if config.model.second_stream == "blip" else set()
    _check_references(config.model, used={"vision"} | second | _towers_of_losses(config))


def _towers_of_losses(config: RunConfig) -> set[str]:
    return {tower for tower, weight in (("match", config.losses.itm), ("answer", config.losses.answer)) if weight > 0}


def _check_references(model: ModelConfig, used: set[str]) -> None:
    for tower in sorted(used):
        reference = getattr(model, tower)
        directory = local_directory(reference)
        if directory is not None and not (directory / "config.json").is_file():
            found = "has no config.json" if directory.is_dir() else "is no directory"
            raise ConfigError(
                f"model.{tower}: {reference} {found}; expected a directory written by save_pretrained, a hub id, or "
                "scratch"
            )
