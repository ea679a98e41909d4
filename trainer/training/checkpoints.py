"""Which checkpoints a run keeps: written by rank 0, agreed on by all, found again whatever was interrupted.

    checkpoints/TAG/    whole checkpoints (trainer.engine.state_file)
    checkpoints/last    the name of the newest one to resume from
    checkpoints/best    the name of the one with the best validation

A checkpoint counts once a pointer names it. The pointer is written last, and what no pointer names is removed after.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from torch import Tensor

from shards.atomic import write_atomically
from shards.errors import DataError, UserError
from trainer.engine.distributed import World, known_to_all
from trainer.engine.state_file import (
    STATE,
    EngineState,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)

logger = logging.getLogger(__name__)

Pointer = Literal["last", "best"]
POINTERS: tuple[Pointer, ...] = ("last", "best")
SPACE_FACTOR = 1.2
"""Free space asked for before writing, relative to the tensors: the rest of the run writes to the same disk."""

_SMALL = ("optimizer", "optimizer_step", "skipped_steps", "loss_scaler")
"""What of an engine's state is no tensor."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Checkpoints:
    """The checkpoints of one run. But for `path` and `pointed`, all ranks call a method together and hear the same.

    Args:
        directory: usually runs/NAME/checkpoints; created when the first checkpoint is written.
        run: the id of the run, which every checkpoint carries; "" for none.
    """

    def __init__(self, directory: Path, world: World, run: str = "") -> None:
        self.directory, self._world, self._run = directory, world, run

    def path(self, name: str) -> Path:
        """Where the checkpoint of this name lies."""
        return self.directory / name

    def save(self, tag: str, state: EngineState | None, progress: Mapping[str, Any]) -> str:
        """Write a checkpoint and return its name; it counts only once it is published.

        The name is the tag, or the tag and a number where that name is taken: a step may be saved twice (at an
        interval, then on a signal), and what a pointer names is never touched.

        Args:
            tag: letters, digits, `_`, `.` and `-`, such as step00001234: names sort by the numbers in them.
            state: from `Engine.export_state`, on rank 0; the others pass None.
            progress: plain JSON values, the same on all ranks or looked at on rank 0 alone.

        Raises:
            UserError: on all ranks, if it could not be written. Everything that was there before is intact.
        """
        assert _NAME.fullmatch(tag), tag
        assert tag not in POINTERS, tag
        return self._on_rank_0(lambda: self._write(tag, state, progress))

    def publish(self, pointer: Pointer, name: str) -> None:
        """Point at a checkpoint, then remove all checkpoints that no pointer names.

        Raises:
            UserError: on all ranks, if the pointer could not be written; it still names what it named before.
        """
        assert pointer in POINTERS, pointer
        self._on_rank_0(lambda: self._point(pointer, name))

    def newest(self) -> str | None:
        """The checkpoint to resume from: the one that `last` names, else the newest that is intact.

        Returns:
            Its name, every byte of it verified; None if the run has no checkpoint yet.

        Raises:
            DataError: on all ranks, if there are checkpoints and none is intact.
        """
        return self._on_rank_0(self._newest_intact)

    def pointed(self, pointer: Pointer) -> str | None:
        """What a pointer names, intact or not; None if there is none that can be read."""
        try:
            name = (self.directory / pointer).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return name if _NAME.fullmatch(name) else None

    def load(self, name: str) -> tuple[EngineState, dict[str, Any]]:
        """What `save` was given, on every rank. Rank 0 alone reads, so the other nodes need not see its disk.

        Raises:
            DataError: on all ranks, if it is damaged.
        """
        if self._world.world_size == 1:
            return read_checkpoint(self.path(name))
        error, state, progress = None, None, {}
        if self._world.rank == 0:
            try:
                state, progress = read_checkpoint(self.path(name))
            except DataError as damaged:
                error = damaged
        self._world.agree_or_raise(error)
        return _broadcast(self._world, state, progress)

    def _on_rank_0(self, act: Callable[[], str | None]) -> Any:
        """Let rank 0 act; every rank returns its result or raises its error."""
        verdict, cause = None, None
        if self._world.rank == 0:
            try:
                verdict = {"result": act()}
            except (UserError, OSError, safetensors.SafetensorError) as error:
                verdict, cause = {"error": str(error), "data": isinstance(error, DataError)}, error
        verdict = json.loads(self._world.broadcast_text(json.dumps(verdict) if verdict is not None else None))
        if "error" in verdict:
            raise known_to_all((DataError if verdict["data"] else UserError)(verdict["error"])) from cause
        return verdict["result"]

    def _write(self, tag: str, state: EngineState | None, progress: Mapping[str, Any]) -> str:
        assert state is not None, "rank 0 has the state to write"
        name = next(name for name in _candidates(tag) if not self.path(name).exists())
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._sweep()
            free = shutil.disk_usage(self.directory).free
            if free < state.nbytes * SPACE_FACTOR:
                raise OSError(f"{_mib(state.nbytes * SPACE_FACTOR)} needed and {_mib(free)} free")
            write_checkpoint(self.directory, name, state, progress, run=self._run)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{self.path(name)}: checkpoint not written ({error}); earlier checkpoints are intact: "
                "free some space on this disk"
            ) from error
        return name

    def _point(self, pointer: Pointer, name: str) -> None:
        assert self.path(name).is_dir(), name
        try:
            write_atomically(self.directory / pointer, f"{name}\n".encode())
        except OSError as error:
            raise UserError(
                f"{self.directory / pointer}: not written ({error}); free some space on this disk"
            ) from error
        self._prune()

    def _newest_intact(self) -> str | None:
        pointed = self.pointed("last")
        others = [name for name in self._names() if name != pointed]
        faults = []
        for name in ([pointed] if pointed is not None else []) + others:
            try:
                verify_checkpoint(self.path(name))
            except DataError as fault:
                faults.append(str(fault))
                continue
            if faults:
                logger.warning("going back to checkpoint %s: %s", name, "; ".join(faults))
            elif pointed is None:
                logger.warning("%s names no checkpoint; taking the newest, %s", self.directory / "last", name)
            return name
        if faults:
            raise DataError(
                f"{self.directory}: no checkpoint is intact; start again with --fresh ({'; '.join(faults)})"
            )
        return None

    def _names(self) -> list[str]:
        """Everything that looks like a checkpoint, newest first."""
        if not self.directory.is_dir():
            return []
        names = [entry.name for entry in self.directory.iterdir() if _NAME.fullmatch(entry.name) and entry.is_dir()]
        return sorted(names, key=_by_number, reverse=True)

    def _prune(self) -> None:
        """Remove what no pointer names. Failing to is no reason to stop a run."""
        kept = {pointer: self.pointed(pointer) for pointer in POINTERS}
        if any(name is None and (self.directory / pointer).exists() for pointer, name in kept.items()):
            return  # a pointer that cannot be read may name any of them
        for name in self._names():
            if name not in kept.values() and (self.path(name) / STATE).exists():
                # Renamed first: an interrupted removal must not leave half a checkpoint under a whole one's name.
                discarded = self.directory / f".{name}.partial"
                try:
                    shutil.rmtree(discarded, ignore_errors=True)
                    self.path(name).rename(discarded)
                except OSError as error:
                    logger.warning("%s: cannot be removed (%s)", self.path(name), error)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed process left half written or half removed."""
        for entry in self.directory.glob(".*.partial"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _candidates(tag: str) -> Iterator[str]:
    yield tag
    attempt = 2
    while True:
        yield f"{tag}-{attempt}"
        attempt += 1


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key under which step9 comes before step10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _mib(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


def _broadcast(
    world: World, state: EngineState | None, progress: Mapping[str, Any]
) -> tuple[EngineState, dict[str, Any]]:
    """Send a state from rank 0 to all ranks, tensor by tensor."""
    header = None
    if state is not None:
        groups = [("", state.parameters), *state.moments.items()]
        tensors = [
            (kind, name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for kind, of in groups
            for name, tensor in of.items()
        ]
        small = {key: getattr(state, key) for key in _SMALL}
        header = json.dumps({"tensors": tensors, "small": small, "progress": progress})
    content = json.loads(world.broadcast_text(header))
    parameters: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for kind, name, shape, dtype in content["tensors"]:
        own = torch.empty(shape, dtype=getattr(torch, dtype))
        if state is not None:
            own = (state.moments[kind] if kind else state.parameters)[name]
        (moments.setdefault(kind, {}) if kind else parameters)[name] = world.broadcast_tensor(own)
    return EngineState(parameters=parameters, moments=moments, **content["small"]), content["progress"]
