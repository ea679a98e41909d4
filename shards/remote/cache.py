"""A directory of shards by their sha256, bounded in bytes, that any number of processes and runs share.

Everything that one process tells another is a lock of the kernel's (flock) on a file here, so what a killed process
held is free at once: readers hold a shard's own file, a fetch holds `SHA.lock`, and who has shards fetched ahead holds
`SHA.hold` for each. A shard grows in `SHA.BYTES.part`, whose name says how much room it is going to take.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from shards.atomic import sync_directory
from shards.errors import ConfigError, DataError

ENVIRONMENT = "DUOFLOW_CACHE"
"""The variable that names the directory where a recipe does not."""

_LOCK_POLL_SECONDS = 0.05
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Copy(NamedTuple):
    """A shard as the cache knows it."""

    sha256: str
    bytes: int


class Spare(IntEnum):
    """Whose shards have to go when room is needed."""

    UNUSED = 0
    """Those that nobody reads and nobody has announced, the one used last longest ago first."""
    AHEAD = 1
    """Those too that were fetched ahead of need."""
    READ = 2
    """Those too that are read at this moment: who has one open reads on in it; for others it is fetched anew."""


def cache_directory(named: str | None) -> Path:
    """The directory of the cache: what the recipe names, else $DUOFLOW_CACHE, else ~/.cache/duoflow/shards."""
    return Path(named or os.environ.get(ENVIRONMENT) or "~/.cache/duoflow/shards").expanduser()


class ShardCache:
    """The copies in a directory, of at most `limit_bytes` together, those that are being fetched included in full.

    Raises (all methods):
        DataError: the directory cannot be made, read or written.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory, self.limit_bytes = directory, limit_bytes

    def check(self) -> None:
        """Make the directory.

        Raises:
            ConfigError: it cannot be made or written to.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"data.cache.directory: {self.directory}: cannot be made: {error.strerror}") from None
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise ConfigError(f"data.cache.directory: {self.directory}: cannot be written to; name another directory")

    def open(self, copy: Copy) -> int | None:
        """A descriptor of a whole copy, which keeps it from being evicted until it is closed; None if there is none."""
        path = self._tar(copy.sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_nlink == 0 or status.st_size != copy.bytes:
            os.close(descriptor)
            if status.st_nlink:
                self.discard(copy)  # cut off by whatever damaged the disk: no fetch leaves such a file
            return None
        with contextlib.suppress(PermissionError):  # the copy of another user: its own runs keep its time
            os.utime(descriptor)
        return descriptor

    def has(self, copy: Copy) -> bool:
        """Whether there is a whole copy."""
        try:
            return self._tar(copy.sha256).stat().st_size == copy.bytes
        except FileNotFoundError:
            return False

    def discard(self, copy: Copy) -> None:
        """Forget a copy that is not what its name says; who reads it keeps what it has opened."""
        self._tar(copy.sha256).unlink(missing_ok=True)

    def hold(self, copy: Copy) -> int:
        """Announce that this process will need a shard soon, until the descriptor is closed."""
        descriptor = self._locked(self._path(copy, "hold"), fcntl.LOCK_SH)
        assert descriptor is not None, "only an eviction locks it otherwise, for an instant"
        return descriptor

    @contextlib.contextmanager
    def fetching(self, copy: Copy, *, stalled_seconds: float) -> Iterator["Fetch"]:
        """Be the only one on this machine who fetches a shard; waits for whoever does.

        Raises:
            DataError: who does has not got a byte for `stalled_seconds`, and has not ended either.
        """
        path, part = self._path(copy, "lock"), self.part(copy)
        seen, since, began = -1, time.monotonic(), time.time()
        while (descriptor := self._locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
            size = _size(part)
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > stalled_seconds:
                raise DataError(
                    f"{path}: the process that fetches this shard hangs at byte {max(size, 0)} (its id: `lsof {path}`)"
                    "; end it, and run the same command again"
                )
            time.sleep(_LOCK_POLL_SECONDS)
        try:
            yield Fetch(descriptor, began)
        finally:
            os.close(descriptor)

    def part(self, copy: Copy) -> Path:
        """Where a shard grows."""
        return self.directory / f"{copy.sha256}.{copy.bytes}.part"

    def make_room(self, copy: Copy, spare: Spare) -> bool:
        """Reserve the room of a shard that is about to be fetched, evicting others; False if there is not enough."""
        part = self.part(copy)
        with self._room():
            if part.exists():
                return True
            over = self.used_bytes() + copy.bytes - self.limit_bytes
            if not self._evict(over, spare, keep=copy):
                return False
            part.touch()
            return True

    def free_disk(self, wanted_bytes: int, spare: Spare, *, keep: Copy) -> bool:
        """Evict others for want of space on the disk itself; False if nothing is left to evict."""
        with self._room():
            return self._evict(wanted_bytes, spare, keep=keep)

    def finish(self, copy: Copy, descriptor: int) -> None:
        """Give a fetched shard, of which all bytes are written, its name."""
        os.fsync(descriptor)
        self.part(copy).replace(self._tar(copy.sha256))
        sync_directory(self.directory)

    def used_bytes(self) -> int:
        """Bytes of all copies, those being fetched counted in full."""
        return sum(size for _, size, _ in self._entries())

    def _evict(self, over: int, spare: Spare, *, keep: Copy) -> bool:
        """Remove files until `over` bytes are gone, those used last longest ago first; whether that was possible."""
        for level in Spare:
            if over <= 0 or level > spare:
                break
            # Of shards that were fetched ahead, the last one is needed last.
            by_use = sorted(self._entries(), key=lambda entry: entry.used, reverse=level is Spare.AHEAD)
            for path, size, _ in by_use:
                if over <= 0:
                    break
                if not path.name.startswith(keep.sha256) and self._remove(path, level):
                    over -= size
        return over <= 0

    def _remove(self, path: Path, spare: Spare) -> bool:
        """Remove a copy, or an unfinished one that nobody fetches, if its users may be disregarded."""
        sha256 = path.name.partition(".")[0]
        with contextlib.ExitStack() as held:
            guards = [self.directory / f"{sha256}.lock"] if path.suffix == ".part" else []
            if spare < Spare.AHEAD:
                guards.append(self.directory / f"{sha256}.hold")
            if path.suffix == ".tar" and spare < Spare.READ:
                guards.append(path)
            for guard in guards:
                descriptor = self._locked(guard, fcntl.LOCK_EX | fcntl.LOCK_NB, create=guard != path)
                if descriptor is None:
                    return False
                held.callback(os.close, descriptor)
                if guard != path:
                    held.callback(guard.unlink, missing_ok=True)
            path.unlink(missing_ok=True)
            return True

    def _entries(self) -> Iterator["_Entry"]:
        with os.scandir(self.directory) as entries:
            for entry in entries:
                name, _, suffix = entry.name.rpartition(".")
                if suffix not in ("tar", "part"):
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # renamed or evicted by another process meanwhile
                declared = name.rpartition(".")[2]
                size = int(declared) if suffix == "part" and declared.isdecimal() else status.st_size
                yield _Entry(Path(entry.path), size, status.st_mtime_ns)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """One process at a time counts and evicts; held for milliseconds."""
        descriptor = self._locked(self.directory / "room.lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    def _locked(self, path: Path, operation: int, *, create: bool = True) -> int | None:
        """A descriptor that holds a lock on the file which the path names now; None if it may not wait and would."""
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        while True:
            try:
                descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise self._fault(error) from None
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                os.close(descriptor)
                raise self._fault(error) from None
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # removed before it was locked: the name may belong to another file by now

    def _fault(self, error: OSError) -> DataError:
        if error.errno in _FULL:
            return disk_is_full(self.directory)
        return DataError(
            f"{self.directory}: cannot be used as a cache: {error.strerror}; name a directory on a local disk in "
            "data.cache.directory"
        )

    def _tar(self, sha256: str) -> Path:
        return self.directory / f"{sha256}.tar"

    def _path(self, copy: Copy, suffix: str) -> Path:
        return self.directory / f"{copy.sha256}.{suffix}"


class Fetch:
    """The right to fetch a shard. Who waits for one that fails need not fail all over again: the error is handed on."""

    def __init__(self, descriptor: int, began: float) -> None:
        self._descriptor, self._began = descriptor, began

    def fault_meanwhile(self) -> str | None:
        """Why the fetch failed that this one has waited for; None if it has not waited, or there was no fault."""
        status = os.fstat(self._descriptor)
        if not status.st_size or status.st_mtime < self._began:
            return None
        return os.pread(self._descriptor, status.st_size, 0).decode(errors="replace")

    def leave_fault(self, message: str | None) -> None:
        """Hand on why a fetch failed, or that it did not."""
        os.ftruncate(self._descriptor, 0)
        if message is not None:
            os.pwrite(self._descriptor, message.encode(), 0)


class _Entry(NamedTuple):
    """A file that takes room."""

    path: Path
    size: int
    used: int
    """When it was used last, in nanoseconds."""


def disk_is_full(directory: Path) -> DataError:
    """What there is to say when nothing more can be evicted."""
    return DataError(
        f"{directory}: the disk is full, and nothing in the cache may be evicted; free some space on this disk, or "
        "name another one in data.cache.directory"
    )


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of space."""
    return error.errno in _FULL


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
