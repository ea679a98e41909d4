"""The shards of a URL, opened: what is not in the cache is fetched first, once on this machine for everybody."""

import hashlib
import os
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from shards.config import CacheConfig
from shards.errors import ConfigError, DataError
from shards.format.files import OPEN_SHARDS, ShardFiles
from shards.format.index import Shard
from shards.remote.address import is_url
from shards.remote.cache import Copy, ShardCache, Spare, cache_directory, disk_is_full, is_full
from shards.remote.retry import Patience, TransientError, persistently
from shards.remote.source import MissingError, Source, here

CHUNK_BYTES = 8 * 2**20
"""Asked for at a time: what a connection that breaks costs, and 64 ms of a link of 1 Gbit/s against its latency."""
_BAD_TRANSFERS = 3
"""Whole downloads, each with another wrong digest, until the way here is given up."""
_HASH_BYTES = 2**20
_HANGS = 2
"""Times `retry_seconds` without a byte until a process that fetches is thought to hang, and not to retry."""


def open_files(place: str | Path, shards: Sequence[Shard], cache: CacheConfig | None) -> ShardFiles:
    """What opens the shards of a directory or of a URL.

    Raises:
        ConfigError: the cache is smaller than a shard, or cannot be written.
    """
    if not (isinstance(place, str) and is_url(place)):
        return ShardFiles(place)
    cache = cache or CacheConfig()
    largest = max(shards, key=lambda shard: shard.bytes)
    if largest.bytes > cache.bytes:
        raise ConfigError(
            f"data.cache.bytes: {cache.bytes} is less than {place}/{largest.name} alone, of {largest.bytes} bytes; "
            "give the cache room for all shards that are read at once, or build with a smaller --shard-bytes"
        )
    files = CachedFiles(place, cache)
    files.cache.check()
    return files


class CachedFiles(ShardFiles):
    """The shards of a URL, by way of the cache.

    Without a word about what is read (`expect`), one shard stays open at a time: an open shard is not evicted.
    """

    def __init__(self, url: str, cache: CacheConfig) -> None:
        super().__init__(url)
        self.source, self._config = Source(url), cache
        self.cache = ShardCache(cache_directory(cache.directory), cache.bytes)
        self._expected: Set[str] = frozenset()

    def __reduce__(self) -> tuple:
        return type(self), (self.source.url, self._config)

    def place(self, shard: Shard) -> str:
        return self.source.place(shard.name)

    def descriptor(self, shard: Shard) -> int:
        """An open copy of a shard, valid until another one is asked for.

        Raises:
            DataError: it cannot be fetched, or is not what the index says.
        """
        descriptor = self._open.pop(shard.name, None)
        if descriptor is None:
            self._close(name for name in list(self._open) if self._may_close(name))
            while len(self._open) >= OPEN_SHARDS:
                self._close([next(iter(self._open))])
            descriptor = self._fetched(shard)
        self._open[shard.name] = descriptor
        return descriptor

    def expect(self, names: Set[str]) -> None:
        self._expected = names
        self._close(name for name in list(self._open) if self._may_close(name))

    def has(self, shard: Shard) -> bool:
        """Whether a copy is there."""
        return self.cache.has(_copy(shard))

    def hold(self, shard: Shard) -> int:
        """Announce that a shard is needed soon, until the descriptor is closed."""
        return self.cache.hold(_copy(shard))

    def prefetch(self, shard: Shard) -> bool:
        """Have a shard in the cache before it is needed; False if there is no room, or somebody else is at it.

        Raises:
            DataError: as `descriptor`.
        """
        copy = _copy(shard)
        if self.cache.has(copy):
            return True
        with self.cache.fetching(copy, stalled_seconds=_HANGS * self._config.retry_seconds) as fetch:
            if self.cache.has(copy):
                return True
            if not self.cache.make_room(copy, Spare.UNUSED):
                return False
            try:
                os.close(self._fetch(shard, Spare.UNUSED))
            except DataError as error:
                fetch.leave_fault(str(error))
                raise
            fetch.leave_fault(None)
        return True

    def _fetched(self, shard: Shard) -> int:
        copy = _copy(shard)
        while (descriptor := self.cache.open(copy)) is None:
            with self.cache.fetching(copy, stalled_seconds=_HANGS * self._config.retry_seconds) as fetch:
                if self.cache.has(copy):
                    continue
                fault = fetch.fault_meanwhile()
                if fault is not None:
                    raise DataError(fault)
                try:
                    self._wait_for_room(shard)
                    descriptor = self._fetch(shard, Spare.READ)
                except DataError as error:
                    fetch.leave_fault(str(error))
                    raise
                fetch.leave_fault(None)
                return descriptor
        return descriptor

    def _wait_for_room(self, shard: Shard) -> None:
        patience = Patience(self._config.retry_seconds)
        while not self.cache.make_room(_copy(shard), Spare.READ):
            if not patience.wait():
                raise DataError(
                    f"data.cache.bytes: {self._config.bytes} leave no room in {self.cache.directory} for "
                    f"{self.place(shard)} beside what other processes of {here()} are fetching; raise it"
                )

    def _fetch(self, shard: Shard, spare: Spare) -> int:
        """Fetch a shard into the room that was made for it; a descriptor of the copy."""
        copy = _copy(shard)
        wrong: list[str] = []
        while True:
            descriptor = os.open(self.cache.part(copy), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                digest = self._download(shard, descriptor, spare)
                if digest == shard.sha256:
                    self.cache.finish(copy, descriptor)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    return self._leased(copy, descriptor)
                os.ftruncate(descriptor, 0)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if digest in wrong:
                raise DataError(
                    f"{self.place(shard)}: sha256 {digest}, twice; the index says {shard.sha256}: the file there is "
                    f"another one ({here()}); copy the shards and their index there again"
                )
            wrong.append(digest)
            if len(wrong) == _BAD_TRANSFERS:
                raise DataError(
                    f"{self.place(shard)}: came with {len(wrong)} different digests, none of which is "
                    f"{shard.sha256} of the index ({here()}); see to the network or the proxy in "
                    "between, and run the same command again"
                )

    def _leased(self, copy: Copy, descriptor: int) -> int:
        """The copy as a reader holds it. Without it a copy that is new here could be evicted before it is read."""
        opened = self.cache.open(copy)
        if opened is None:  # evicted already, for want of room elsewhere: what is open stays readable
            return descriptor
        os.close(descriptor)
        return opened

    def _download(self, shard: Shard, descriptor: int, spare: Spare) -> str:
        """Get the bytes that are missing; the sha256 of all."""
        digest, offset = _digest_so_far(descriptor, shard.bytes)
        patience = Patience(self._config.retry_seconds)
        short = False
        while offset < shard.bytes:
            start, stop = offset, min(offset + CHUNK_BYTES, shard.bytes)
            data = self._request(shard, start, stop, patience)
            if len(data) > stop - start:  # the server has answered with the whole file
                digest, start, data = hashlib.sha256(), 0, data[: shard.bytes]
            self._write(descriptor, data, start, spare, shard)
            digest.update(data)
            offset = start + len(data)
            if len(data) < stop - start:
                if short:
                    raise DataError(
                        f"{self.place(shard)}: ends at byte {offset}, expected {shard.bytes} ({here()}); copy the "
                        "shards and their index there again"
                    )
                short = not data
        return digest.hexdigest()

    def _request(self, shard: Shard, start: int, stop: int, patience: Patience) -> bytes:
        try:
            return persistently(lambda: self.source.read(shard.name, start, stop), patience)
        except MissingError as error:
            raise DataError(
                f"{self.place(shard)}: is not there ({error}; {here()}); copy the shards and their index there again"
            ) from None
        except TransientError as error:
            raise DataError(
                f"{self.place(shard)}: not a byte for {self._config.retry_seconds:g} s on {here()} ({error}); see to "
                "the network or the server and run the same command again, or raise data.cache.retry_seconds"
            ) from None

    def _write(self, descriptor: int, data: bytes, start: int, spare: Spare, shard: Shard) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(descriptor, view, start)
            except OSError as error:
                if not is_full(error):
                    raise DataError(f"{self.cache.directory}: cannot be written: {error.strerror}") from None
                if not self.cache.free_disk(len(view), spare, keep=_copy(shard)):
                    raise disk_is_full(self.cache.directory) from None
                continue
            view, start = view[written:], start + written

    def _may_close(self, name: str) -> bool:
        """Whether a shard is not expected; or evicted, so that its bytes are free once it is closed."""
        return name not in self._expected or os.fstat(self._open[name]).st_nlink == 0

    def _close(self, names: Iterable[str]) -> None:
        for name in names:
            os.close(self._open.pop(name))


def _copy(shard: Shard) -> Copy:
    return Copy(shard.sha256, shard.bytes)


def _digest_so_far(descriptor: int, limit: int) -> tuple["hashlib._Hash", int]:
    """The running sha256 of what an earlier fetch has left, and how much that is."""
    digest, offset = hashlib.sha256(), 0
    while offset < limit and (data := os.pread(descriptor, min(_HASH_BYTES, limit - offset), offset)):
        digest.update(data)
        offset += len(data)
    os.ftruncate(descriptor, offset)
    return digest, offset
