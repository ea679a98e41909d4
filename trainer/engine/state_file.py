"""One checkpoint on disk: a directory of two safetensors files and a state.json that carries their sha256.

    TAG/model.safetensors       trainable parameters, fp32, by name
    TAG/optimizer.safetensors   what the optimizer keeps, by its own names: exp_avg.NAME and exp_avg_sq.NAME of AdamW
    TAG/state.json              everything small, and the size and sha256 of the other two

It is written beside its place as .TAG.partial, flushed to the disk and renamed, so that a directory called TAG is
whole. Nothing in it is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import pydantic
import safetensors
import safetensors.torch
from torch import Tensor

from shards.atomic import sync_directory
from shards.config_base import Section
from shards.errors import DataError

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """All that an optimizer step depends on, apart from the batch: full tensors by parameter name, fp32 on the CPU."""

    parameters: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    """What the optimizer keeps of parameters, by its own name for it and then by parameter: `exp_avg`, `exp_avg_sq` of
    AdamW. Mostly full tensors; numbers have no dimension. Its count of updates is `optimizer_step`."""
    optimizer: str = "adamw"
    """timm's name."""
    optimizer_step: int
    """Updates that were applied; bias corrections depend on it."""
    skipped_steps: int = 0
    """Updates that were left out because of non-finite gradients."""
    loss_scaler: dict[str, float | int] = field(default_factory=dict)
    """Dynamic loss scaling under fp16, else empty: cur_scale, cur_iter, last_overflow_iter, cur_hysteresis."""

    def __post_init__(self) -> None:
        assert all(of.keys() <= self.parameters.keys() for of in self.moments.values())

    @property
    def nbytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(tensor.nbytes for group in (self.parameters, *self.moments.values()) for tensor in group.values())

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], optimizer: str = "adamw") -> None:
        """Compare with the shapes of a model's parameters and with the name of its optimizer.

        Raises:
            DataError: names or shapes differ.
        """
        if self.optimizer != optimizer:
            raise DataError(
                f"checkpoint: it was trained with optim.name={self.optimizer}, and this is {optimizer}; resume with "
                "the recipe that it was saved with"
            )
        missing, unknown = sorted(shapes.keys() - self.parameters), sorted(self.parameters.keys() - shapes)
        if missing or unknown:
            raise DataError(
                f"checkpoint: it belongs to another model: {len(missing)} parameters are missing from it "
                f"({', '.join(missing[:3]) or 'none'}), {len(unknown)} are not in the model "
                f"({', '.join(unknown[:3]) or 'none'}); resume with the recipe that it was saved with"
            )
        for name, shape in shapes.items():
            found = tuple(self.parameters[name].shape)
            if found != shape:
                raise DataError(
                    f"checkpoint: {name} has shape {found}, the model expects {shape}; resume with the recipe that it "
                    "was saved with"
                )


class FileRecord(Section):
    """What a file of a checkpoint must be."""

    bytes: int
    sha256: str


class StateRecord(Section):
    """The content of state.json, but for its own sha256."""

    format: Literal[1] = FORMAT
    optimizer: str = "adamw"
    """Left out where it is AdamW, as in checkpoints of the time when there was no other."""
    optimizer_step: int
    skipped_steps: int
    loss_scaler: dict[str, float | int]
    progress: dict[str, Any]
    """The training loop's own values: step, epoch, best metric and the like. This file does not look inside."""
    run: str = ""
    """The id of the run; left out where there is none, as in checkpoints of the time before ids."""
    files: dict[str, FileRecord]


def write_checkpoint(
    directory: Path, name: str, state: EngineState, progress: Mapping[str, Any], *, run: str = ""
) -> Path:
    """Write `directory/name`, which must not exist, and return it.

    Args:
        run: the id of the run; "" writes none.

    Raises:
        OSError, safetensors.SafetensorError: the disk is full or fails; nothing is left behind.
    """
    final, partial = directory / name, directory / f".{name}.partial"
    assert not final.exists(), final
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        moments = {f"{kind}.{name}": tensor for kind, of in state.moments.items() for name, tensor in of.items()}
        files = {MODEL: _write_tensors(partial / MODEL, state.parameters)}
        files[OPTIMIZER] = _write_tensors(partial / OPTIMIZER, moments)
        record = StateRecord(
            optimizer=state.optimizer,
            optimizer_step=state.optimizer_step,
            skipped_steps=state.skipped_steps,
            loss_scaler=state.loss_scaler,
            progress=dict(progress),
            run=run,
            files=files,
        )
        # Through JSON and back: the digest is taken over what a reader will parse.
        left_out = {
            name for name, is_usual in (("optimizer", state.optimizer == "adamw"), ("run", not run)) if is_usual
        }
        content = json.loads(json.dumps(record.model_dump(exclude=left_out)))
        _write_synced(partial / STATE, json.dumps(content | {"sha256": _digest_of(content)}, indent=1).encode())
        sync_directory(partial)
        partial.rename(final)
        sync_directory(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def read_record(checkpoint: Path) -> StateRecord:
    """Read state.json alone: enough to know where a run stands.

    Raises:
        DataError: it is missing or damaged, or of a format that this version does not know.
    """
    path = checkpoint / STATE
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        _damaged(path, error.strerror or "cannot be read")
    except ValueError:
        _damaged(path, "not valid JSON")
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest_of(content):
        _damaged(path, "its content does not match its sha256")
    if content.get("format") != FORMAT:
        raise DataError(
            f"{path}: checkpoint format {content.get('format')!r}, this version of duoflow reads {FORMAT}; "
            "use the version that wrote it"
        )
    try:
        return StateRecord.model_validate(content)
    except pydantic.ValidationError as error:
        _damaged(path, error.errors()[0]["msg"])


def verify_checkpoint(checkpoint: Path) -> StateRecord:
    """Read every byte of a checkpoint and compare with its sha256.

    Raises:
        DataError: naming the file that is missing or damaged.
    """
    record = read_record(checkpoint)
    for name in (MODEL, OPTIMIZER):
        path, expected = checkpoint / name, record.files.get(name)
        if expected is None:
            _damaged(checkpoint / STATE, f"it does not list {name}")
        try:
            size = path.stat().st_size
            if size != expected.bytes:
                _damaged(path, f"{size} bytes, expected {expected.bytes}")
            if _digest_file(path) != expected.sha256:
                _damaged(path, "its content does not match its sha256")
        except OSError as error:
            _damaged(path, error.strerror or "cannot be read")
    return record


def read_checkpoint(checkpoint: Path) -> tuple[EngineState, dict[str, Any]]:
    """Verify a checkpoint and read it: the engine's state, and the progress that was saved with it.

    Raises:
        DataError: naming the file that is missing or damaged.
    """
    record = verify_checkpoint(checkpoint)
    parameters, moments = _read_tensors(checkpoint / MODEL), {}
    for key, tensor in _read_tensors(checkpoint / OPTIMIZER).items():
        kind, _, name = key.partition(".")
        if name not in parameters:
            _damaged(checkpoint / OPTIMIZER, f"its tensors are not those of {MODEL}")
        moments.setdefault(kind, {})[name] = tensor
    state = EngineState(
        parameters=parameters,
        optimizer=record.optimizer,
        moments=moments,
        optimizer_step=record.optimizer_step,
        skipped_steps=record.skipped_steps,
        loss_scaler=record.loss_scaler,
    )
    return state, record.progress


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return FileRecord(bytes=path.stat().st_size, sha256=_digest_file(path))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        _damaged(path, str(error))


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, reason: str) -> NoReturn:
    raise DataError(f"{path}: damaged checkpoint: {reason}; use another checkpoint of this run") from None
