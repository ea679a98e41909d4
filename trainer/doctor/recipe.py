"""What a recipe needs of this machine, beyond what every run needs."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from model.precision import T5_IS_WIDE
from shards.errors import UserError
from shards.format.index import open_index
from shards.remote.address import is_url
from shards.tasks import TASKS
from trainer.config import RunConfig
from trainer.config.schema import check_world_size, policy_path
from trainer.doctor.checkpoints import (
    Checkpoint,
    cache_row,
    checkpoint_rows,
    checkpoint_uses,
    examine_all,
    width_row,
)
from trainer.doctor.efficient_sam_file import efficient_sam_row
from trainer.doctor.machine import SHARED_MEMORY, shared_memory_free
from trainer.doctor.table import Row
from trainer.engine.deepspeed_config import read_policy, resolve_precision, zero_stage
from trainer.engine.policy_choice import AUTO
from trainer.tasks import task_named
from trainer.training.preflight import Machine, plan_machine, preflight

SPLITS = ("train", "val", "testdev", "test", "challenge")
TRAINING_SPLITS = ("train", "val")
PREFETCHED = 2
"""Micro-batches that a loader's worker keeps ready (torch's prefetch_factor)."""


def recipe_rows(config: RunConfig) -> list[Row]:
    """A row for everything that the recipe names or asks of the machine; the last are the checks of a real start."""
    uses = checkpoint_uses(config)
    checkpoints = examine_all(uses)
    rows = [cache_row()] if any(checkpoint.is_on_hub for checkpoint in checkpoints.values()) else []
    rows += checkpoint_rows(uses, checkpoints)
    if config.model.vlm is None and config.model.retrieval is None and config.model.reader is None:
        rows += [row for row in (efficient_sam_row(config.model),) if row is not None]
        rows.append(width_row(config.model, uses, checkpoints))
    rows += data_rows(config)
    rows += _machine_rows(config, checkpoints.get(config.model.vlm or config.model.answer))
    rows += [_attempt("engine.policy", lambda: _policy(config)), Row("run", _room(config))]
    if not any(row.fault for row in rows):
        rows.append(_attempt("checks of a start", lambda: _start(config)))
    return rows


def _machine_rows(config: RunConfig, answer: Checkpoint | None) -> list[Row]:
    """How the run is shared between ranks, what it computes in, and what its loaders hold."""
    try:
        machine = plan_machine(config, os.environ)
    except UserError as error:
        return [Row("ranks", "refused", str(error))]
    return [
        _attempt("ranks", lambda: _ranks(config, machine)),
        _attempt("precision", lambda: _precision(config, machine, answer)),
        _loader(config, machine.processes),
    ]


def data_rows(config: RunConfig) -> Iterator[Row]:
    """A row for each split that the recipe names; `data.train` is looked for in any case."""
    for split in SPLITS:
        directory = getattr(config.data, split)
        if directory is not None:
            yield _split_row(split, directory, config)
        elif split == "train":
            yield Row("data.train", "not set", "is not set; name a directory of shards")


def build_command(task: str, split: str, directory: str, image_size: int | None) -> str:
    """The command that makes a split's shards of the task's official files."""
    resize = f" --resize {image_size}" if image_size is not None else ""
    files = task_named(task).files.format(split=split)
    return f"duoflow shards build --format {TASKS[task].formats[0]} {files}{resize} --out {directory}"


def _split_row(split: str, directory: str, config: RunConfig) -> Row:
    key = f"data.{split}"
    command = build_command(config.task, split, directory, config.data.image_size)
    try:
        index = open_index(directory)
    except UserError as error:
        if is_url(directory):
            return Row(key, directory, str(error))
        return _absent(key, str(error).partition(";")[0], command, split)
    sizes = {shard.name: shard.bytes for shard in index.shards}
    broken = [
        name for name, size in sizes.items() if not is_url(directory) and _size_of(Path(directory) / name) != size
    ]
    if broken:
        found = f"{directory}: {len(broken)} of {len(sizes)} shards are missing or cut off, such as {broken[0]}"
        return _absent(key, found, command, split)
    counts = index.counts
    found = f"{directory}: {counts['images']:,} images, {counts['questions']:,} questions in {len(sizes):,} tar"
    if split in TRAINING_SPLITS and counts.get("answered", 0) == 0:
        return Row(key, found, f"{directory}: no question has an answer; training and validation need answers")
    return Row(key, found)


def _absent(key: str, found: str, command: str, split: str) -> Row:
    if split not in TRAINING_SPLITS:
        return Row(key, f"{found} (training does not need it)", steps=(command,))
    return Row(key, found, f"{found}; run `{command}`", (command,))


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _attempt(name: str, check: Callable[[], str]) -> Row:
    """A row of what a check says, at fault if it refuses."""
    try:
        return Row(name, check())
    except UserError as error:
        return Row(name, "refused", str(error))


def _ranks(config: RunConfig, machine: Machine) -> str:
    accumulation = check_world_size(config, machine.processes)
    where = "GPU" if machine.gpus else "CPU"
    sizes = f"{accumulation} micro-batches x {config.batch.micro_visits} visits"
    if not isinstance(config.batch.micro_visits, int):
        tokens = config.batch.micro_tokens
        sizes = f"micro-batches of at most {tokens} tokens" if tokens else "micro-batches of a size chosen at the start"
    return f"{machine.processes} on {where}: {config.batch.visits} visits per step = {machine.processes} x {sizes}"


def _precision(config: RunConfig, machine: Machine, answer: Checkpoint | None) -> str:
    if config.model.vlm is not None:
        dtype = None if answer is None else answer.config.get("dtype", answer.config.get("torch_dtype"))
        too_wide = f"{config.model.vlm}, whose weights are bfloat16" if dtype == "bfloat16" else None
        found = resolve_precision(config.precision, "cuda" if machine.gpus else "cpu", too_wide=too_wide)
        return f"{found} (precision: {config.precision})"
    is_t5 = answer is not None and answer.config.get("model_type") == "t5"
    lora, reads = config.model.lora.answer.rank > 0, config.model.reader is not None
    trained = is_t5 and (reads or "answer" not in config.model.freeze or lora)
    too_wide = T5_IS_WIDE if trained else None
    found = resolve_precision(config.precision, "cuda" if machine.gpus else "cpu", too_wide=too_wide)
    return f"{found} (precision: {config.precision}{', T5 is trained' if trained else ''})"


def _policy(config: RunConfig) -> str:
    if config.engine.policy == AUTO:
        return "auto: chosen at the start, from what is trained; `duoflow train --dry-run` says which"
    path = policy_path(config)
    return f"{path}: ZeRO-{zero_stage(read_policy(path))}"


def _loader(config: RunConfig, ranks: int) -> Row:
    side, free = config.data.image_size, shared_memory_free()
    if side is None or free is None or config.data.workers == 0:
        return Row("loader", f"{config.data.workers} worker(s) per rank")
    pixels = 3 * side**2 * config.batch.least_visits * (TASKS[config.task].images or 1)
    needed = pixels * config.data.workers * PREFETCHED * ranks
    found = f"{config.data.workers} worker(s) per rank keep {needed / 1e6:,.0f} MB in {SHARED_MEMORY}"
    if needed < free:
        return Row("loader", found)
    fault = f"{found}, where {free / 1e6:,.0f} MB are free; lower data.workers, or enlarge it (docker: --shm-size)"
    return Row("loader", found, fault)


def _room(config: RunConfig) -> str:
    directory = Path(config.run.directory)
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    return f"{directory / str(config.run.name)}: {shutil.disk_usage(existing).free / 2**30:.1f} GiB free"


def _start(config: RunConfig) -> str:
    preflight(config)
    return "passed"
