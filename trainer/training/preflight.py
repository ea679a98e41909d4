"""Minutes before hours: everything about a run that can be found wrong without starting it."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from launch.processes.local import count_gpus
from model.config import ModelConfig, text_towers, uses_efficient_sam, vision_references
from model.references import Reference, read_reference
from model.towers.checkpoint_files import medium_of, region_width_of
from shards.errors import ConfigError, DataError, UserError
from shards.format.index import SplitIndex, index_digest, open_index
from shards.plan import Share
from shards.read.ahead import check_cache
from shards.read.retrieved import read_retrieved
from shards.remote.address import is_url
from shards.tasks import TASKS
from trainer.config import RunConfig
from trainer.config.faults import without_words, wrong_medium, wrong_width
from trainer.config.schema import check_world_size, policy_path
from trainer.engine.optimizers import check_stage
from trainer.engine.policy_choice import AUTO
from trainer.reporting.trackers import check_tracker
from trainer.run_directory import RunDirectory
from trainer.tasks import task_named
from trainer.training.room import check_disk, check_memory

STATE = "state.json"
"""Of a checkpoint: trainer.engine.state_file, which imports torch."""


class Machine(NamedTuple):
    """What a run gets of this machine."""

    processes: int
    """Ranks."""
    gpus: int
    """GPUs that are there; 0 computes on the CPU."""
    gpu_numbers: tuple[str, ...]
    """Which of them, one per rank; empty is the first ones."""


class Past(NamedTuple):
    """The checkpoint that a run goes on from."""

    step: int
    run: str | None
    """The id of its run; None in one of the time before ids."""
    trained_on: dict[str, str]
    """Digests of the shards behind it, by split."""


def preflight(config: RunConfig, *, fresh: bool = False) -> Machine:
    """Check files, shards, batch sizes and precision, and say how many ranks will run.

    Args:
        fresh: a run of that name is set aside, so that nothing has to fit it.

    Raises:
        UserError: what is wrong, with its key; the first fault found.
    """
    machine = plan_machine(config, os.environ)
    check_world_size(config, machine.processes)
    check_disk(RunDirectory.of(config))
    check_start(config, device_type="cuda" if machine.gpus else "cpu", fresh=fresh)
    check_memory(config, on_gpu=bool(machine.gpus))
    check_room(config, range(machine.processes), machine.processes)
    return machine


def check_start(config: RunConfig, *, device_type: str, fresh: bool) -> None:
    """Check what a run reads, and by this machine's disk what it goes on from.

    Args:
        device_type: cuda or cpu.
        fresh: a run of that name is set aside, so that nothing has to fit it.

    Raises:
        UserError: what is wrong, with its key; the first fault found.
    """
    run = RunDirectory.of(config)
    past = None if fresh else past_of(run)
    if not fresh:
        check_not_lost(run)
    check_inputs(config, device_type=device_type, past=past)


def check_inputs(config: RunConfig, *, device_type: str, past: Past | None) -> None:
    """Check what a run reads, and whether this kind of device computes in its precision.

    Args:
        device_type: cuda or cpu.
        past: what the run goes on from, and has to fit; None where it starts anew.

    Raises:
        UserError: what is wrong, with its key; the first fault found.
    """
    from trainer.engine.deepspeed_config import (  # import torch: few faults should wait for it
        read_policy,
        resolve_precision,
        zero_stage,
    )

    _check_data(config)
    if config.engine.policy != AUTO:
        check_stage(config.optim.choice, zero_stage(read_policy(policy_path(config))))
    resolve_precision(config.precision, device_type)
    check_tracker(config.logging.tracker)
    if config.initialize_from is not None and past is None:
        _check_initial_weights(config.initialize_from)
    _check_weights(config, device_type)
    _check_answers(config)
    if config.data.retrieved is not None:
        read_retrieved(config.data.retrieved, config.data.retrieved_pages)
    if past is not None:
        _check_same_data(config, past)


def check_room(config: RunConfig, ranks: Iterable[int], world_size: int) -> None:
    """Whether the cache of remote shards has room for what the ranks on this machine read at once.

    Raises:
        ConfigError: it has not.
    """
    for name in ("train", "val"):
        place = getattr(config.data, name)
        if place is None or not is_url(place):
            continue

        from trainer.build import open_split  # it imports every model

        split = open_split(config, name)
        if name == "train":
            sizes = {"world_size": world_size, "micro_visits": config.batch.least_visits}
            shares = [Share(rank=rank, **sizes) for rank in ranks]
            check_cache(config.data.cache.bytes, place, split.epoch(0), split.index, shares)


def plan_machine(config: RunConfig, environment: Mapping[str, str]) -> Machine:
    """Ranks on this machine: one per visible GPU, or fewer if the recipe says so; on a CPU as many as it says, or one.

    Raises:
        ConfigError: GPUs named by something that the launcher cannot read.
    """
    gpus = count_gpus(environment)
    wanted = config.engine.processes or max(1, gpus)
    processes = min(wanted, gpus) if gpus else wanted
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
        check_format(config.task, index, key, directory)
        _check_medium(config, index, directory)
        if config.model.reader is not None and not index.has_words:
            raise ConfigError(f"{key}: {without_words(directory)}")
        if index.counts.get("answered", 0) == 0:
            raise ConfigError(f"{key}: {directory}: no question has an answer; training and validation need answers")
        if key == "data.val":
            _check_metric(config, index, directory)


def check_format(task: str, index: SplitIndex, key: str, directory: str) -> None:
    """Whether a task reads what the shards were built from.

    Raises:
        ConfigError: it does not.
    """
    formats = TASKS[task].formats
    if index.reader not in formats:
        fitting = [name for name, data in TASKS.items() if index.reader in data.formats]
        remedy = f"; set task: {fitting[0]}, or name other shards" if fitting else "; name other shards"
        raise ConfigError(
            f"{key}: {directory} was built from format {index.reader}, and task {task} reads "
            f"{', '.join(formats)}{remedy}"
        )


def _check_medium(config: RunConfig, index: SplitIndex, directory: str) -> None:
    """As far as it shows without loading anything: a checkpoint that is not here yet is judged when it is loaded."""
    whole = config.model.vlm or config.model.retrieval or config.model.reader
    reference, reads = whole or config.model.vision, "pixels" if whole else medium_of(config.model.vision)
    if reads is not None and reads != index.medium:
        raise ConfigError(wrong_medium(reference, reads, directory, index.medium))
    width = region_width_of(reference) if index.medium == "regions" else None
    if width is not None and width != index.regions.width:
        raise ConfigError(wrong_width(reference, width, directory, index.regions))
    if index.medium == "regions" and config.data.augment is not None:
        raise ConfigError(
            f"data.augment: {config.data.augment} changes pictures, and {directory} holds regions; set it to null"
        )


def _check_metric(config: RunConfig, index: SplitIndex, directory: str) -> None:
    """Whether a validation on these items records the metric: a type without questions has no accuracy."""
    metric, task = config.early_stopping.metric, task_named(config.task)
    there = task.measured(index)
    place, _, name = metric.partition("/")
    if place == "val" and name in task.metrics(config.losses) and name not in there:
        names = ", ".join(f"val/{name}" for name in sorted(there, key=lambda name: (name != "accuracy", name)))
        raise ConfigError(f"early_stopping.metric: {metric}: {directory} has no such question; it has {names}")


def _read_index(key: str, directory: str) -> SplitIndex:
    try:
        return open_index(directory)
    except UserError as error:
        raise ConfigError(f"{key}: {error}") from None


def past_of(run: RunDirectory) -> Past | None:
    """The checkpoint that a run goes on from, as far as its pointer and its small file tell; None if there is none.

    One that cannot be read is judged by training, which goes back to an older one.
    """
    if not run.has_checkpoint:
        return None
    try:
        last = (run.checkpoints / "last").read_text(encoding="utf-8").strip()
        record = json.loads((run.checkpoints / last / STATE).read_bytes())
        progress = record["progress"]
        return Past(int(progress.get("global_step", 0)), record.get("run"), dict(progress["identity"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Past(0, None, {})


def check_not_lost(run: RunDirectory) -> None:
    """Whether a run that has had a checkpoint still has one: it would start at step 0, over the export of its best.

    Raises:
        DataError: it has none.
    """
    if any(run.checkpoints.glob(f"*/{STATE}")):
        return
    status = run.read_status()
    steps = None if status is None else status.global_step
    if steps is not None or run.identity.exists():
        raise DataError(
            f"{run.checkpoints}: holds no checkpoint, but this run has had one"
            + ("" if steps is None else f" (of step {steps})")
            + "; put it back, or start over with --fresh"
        )


def _check_same_data(config: RunConfig, past: Past) -> None:
    """The shards have to be those that the run of this name was trained on."""
    run = RunDirectory.of(config)
    for split, digest in past.trained_on.items():
        directory = getattr(config.data, split, None)
        if directory is not None and index_digest(directory) != digest:
            raise DataError(
                f"data.{split}: {directory}: these are not the shards that {run.path} was trained on; put them back, "
                "or start over with --fresh"
            )


def _check_initial_weights(path: str) -> None:
    if not Path(path).expanduser().exists():
        raise ConfigError(
            f"initialize_from: {path}: no such file or directory; name a run directory, a checkpoint or an export, or "
            "null"
        )


def _check_weights(config: RunConfig, device_type: str) -> None:
    if config.model.vlm is not None:
        from model.vlm.checkpoint import check_checkpoint, check_quantize  # it imports transformers

        if config.vlm.quantize is not None:
            check_quantize(config.vlm.quantize, device_type)
        check_checkpoint(config.model.vlm)
        return
    if config.model.reader is not None:
        _check_checkpoint("model.answer", config.model.answer)
        return
    if config.model.retrieval is not None:
        from model.retrieval.checkpoint import check_checkpoint as check_retrieval  # it imports transformers

        check_retrieval(config.model.retrieval)
        return
    _check_efficient_sam(config.model)
    _check_references(config.model, text_towers(TASKS[config.task], config.losses))


def _check_answers(config: RunConfig) -> None:
    """Whether there is a list of answers, where one is learnt or ranked, and that of a head to start from."""
    if config.answers.start_list is not None:
        from model.towers.answer_head import read_answer_list  # it imports torch

        read_answer_list(Path(config.answers.start_list), "answers.start_list")
    if TASKS[config.task].classes is not None or not (config.losses.classify > 0 or config.answers.by == "rank"):
        return

    from trainer.build import classes_of  # it imports every model

    classes_of(config, _read_index("data.train", config.data.train))


def _check_efficient_sam(model: ModelConfig) -> None:
    checkpoint = model.efficient_sam.checkpoint if uses_efficient_sam(model) else None
    if checkpoint is None or Path(checkpoint).expanduser().is_file():
        return

    from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS
    from model.efficient_sam.weights import how_to_get

    message = how_to_get(Path(checkpoint).expanduser(), EFFICIENT_SAM_CONFIGS.get(model.efficient_sam.variant))
    raise ConfigError(f"model.efficient_sam.checkpoint: {message}")


def _check_references(model: ModelConfig, used: Collection[str]) -> None:
    """Whether there is something behind every reference; `used` are the text towers of a run."""
    vision = vision_references(model)
    texts = {part: (f"model.{part}", getattr(model, part)) for part in sorted(used)}
    for tower, (key, text) in sorted({**vision, **texts}.items(), key=lambda entry: entry[1]):
        reference = read_reference(text)
        if reference.is_timm:
            _check_backbone(model, tower, f"{key}={text}", reference)
            continue
        _check_checkpoint(key, text)


def _check_checkpoint(key: str, text: str) -> None:
    reference = read_reference(text)
    if reference.hub_id is not None and not reference.is_untrained:
        from model.towers.hub import check_reachable  # it imports transformers

        check_reachable(f"{key}={text}", text)
    _check_directory(key, text)


def _check_directory(key: str, text: str) -> None:
    directory = read_reference(text).directory
    if directory is not None and not (directory / "config.json").is_file():
        found = "has no config.json" if directory.is_dir() else "is no directory"
        raise ConfigError(
            f"{key}: {text} {found}; expected a directory written by save_pretrained, a hub id, or scratch"
        )


def _check_backbone(model: ModelConfig, tower: str, said: str, reference: Reference) -> None:
    """Whether a backbone of timm can be used so; its weights are fetched now, by one process and not by all."""
    from model.towers.timm_backbone import check_trainable, examine  # these import torch
    from model.towers.timm_files import fetch

    backbone = examine(said, reference)
    if tower not in model.freeze:
        check_trainable(backbone, freeze=tower, checkpointing=model.recomputed_share > 0)
    fetch(said, reference)
