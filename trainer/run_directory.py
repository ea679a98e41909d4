"""A run's directory: the names of its files, its status, and writing that leaves the old file or the new one."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.processes.ranks import live_ranks
from shards.atomic import sync_directory, write_atomically
from shards.errors import UserError
from trainer.config import RunConfig, dump_config, load_run_config

State = Literal["running", "done", "stopped", "failed"]


OCCUPIED = "DUOFLOW_OCCUPIED"
"""Environment variable by which ranks know the run directory whose lock their starter holds."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a run stands, as `status.json` says it: launchers lose exit codes, this file does not."""

    state: State
    exit_code: int | None = None
    """What `duoflow train` returns; None while the run is running."""
    message: str = ""
    """One line for a person."""
    global_step: int | None = None
    """Optimizer steps taken; None before the first."""
    epoch: int | None = None
    """Epochs completed."""
    best: float | None = None
    """Of early_stopping.metric, at the best validation so far."""
    best_step: int | None = None
    stops_at: int | None = None
    """The step at which the run stops early if no validation until then is better; None does not stop early."""
    left_seconds: float | None = None
    """Until the end of the whole run, as it looked at the last checkpoint."""
    speed: dict[str, float | str] | None = None
    """How fast it was at its last checkpoint and what bounds it, as metrics.jsonl names it below `speed/`."""


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of one run lies."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> "RunDirectory":
        """The directory of a loaded configuration."""
        assert config.run.name is not None, "load_config names every run"
        return cls(Path(config.run.directory) / config.run.name)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def identity(self) -> Path:
        """Which run this is: there from the first checkpoint on."""
        return self.path / "identity.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces of single steps."""
        return self.path / "profile"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return (self.checkpoints / "last").exists()

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def ranks(self) -> Path:
        """Which processes train: one `rank*.pid` each, while a run is running."""
        return self.path / "ranks"

    @property
    def console(self) -> Path:
        """What a run without a terminal says."""
        return self.logs / "console.log"

    @property
    def restarts(self) -> Path:
        """A line for each time that the run was started again by itself."""
        return self.logs / "restarts.jsonl"

    def rank_log(self, rank: int) -> Path:
        """What a rank has to say beyond the console."""
        return self.logs / f"rank{rank}.log"

    def predictions(self, split: str, ending: str = "json") -> Path:
        """What a model said to the items of a split, in the file that the task's server takes."""
        return self.path / "predictions" / f"{split}.{ending}"

    def predictions_table(self, split: str) -> Path:
        """The same for a person: a row for each item."""
        return self.path / "answers" / f"{split}.csv"

    def create(self) -> None:
        """Make the directories that every run has; what is there stays.

        Raises:
            UserError: the file system does not allow it.
        """
        try:
            for directory in (self.logs, self.checkpoints, self.ranks):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot make the run's directory: {error.strerror}; set run.directory to a place that "
                "you can write to"
            ) from None

    @contextlib.contextmanager
    def lock(self, *, adopt: bool = False) -> Iterator[None]:
        """Keep every other process that asks for the lock out, for as long as this one lives at most.

        Args:
            adopt: take it also where ranks run whose starter, which had it, is gone.

        Raises:
            UserError: another process has it, or ranks run whose starter is gone.
        """
        descriptor = os.open(self.ranks, os.O_RDONLY)
        try:
            self._take(descriptor)
            if not adopt and (running := live_ranks(self.ranks)):
                raise UserError(
                    f"{self.path}: processes {', '.join(map(str, running))} are training here; stop them (`duoflow "
                    f"stop {self.path}`, and they save) or give this run another run.name"
                )
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"{self.path}: another process is training here; wait for it or give this run another run.name"
                ) from None
            # Some network file systems know no locks: then only the record of running ranks keeps two runs apart.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise

    def set_aside(self) -> Path:
        """Rename the directory to the first free of NAME.1, NAME.2, ..., and return that."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(aside)
        return aside

    def write_config(self, config: RunConfig) -> None:
        write_atomically(self.config, dump_config(config).encode())

    def read_config(self) -> RunConfig | None:
        """The configuration that the run was last started with; None if it never was."""
        return load_run_config(self.config) if self.config.exists() else None

    def write_status(self, status: Status) -> None:
        write_json(self.status, dataclasses.asdict(status))

    def change_status(self, state: State, *, exit_code: int | None = None, message: str = "") -> None:
        """Another state; how far the run is stays as it was."""
        before = self.read_status() or Status(state=state)
        self.write_status(dataclasses.replace(before, state=state, exit_code=exit_code, message=message))

    def read_status(self) -> Status | None:
        """How the run stands; None if it never was started.

        Raises:
            UserError: the file is damaged.
        """
        try:
            values = json.loads(self.status.read_bytes())
            known = {field.name for field in dataclasses.fields(Status)}
            return Status(**{name: value for name, value in values.items() if name in known})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{self.status}: damaged; remove this file to go on from the last checkpoint") from None


def replace_directory(aside: Path, directory: Path) -> None:
    """Put a finished directory in the place of an old one. A crash between the renames leaves both, none half."""
    for file in aside.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    sync_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with a line per key, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
