"""A shard on its way into the cache: what the network, the server and other processes may do to it."""

import errno
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.config import CacheConfig
from shards.errors import ConfigError, DataError
from shards.format.index import Shard
from shards.remote import files as remote_files
from shards.remote.cache import Spare
from shards.remote.files import CachedFiles, open_files
from tests.servers import Behaviour, file_server

pytest.importorskip("aiohttp", reason="http:// needs aiohttp: pip install 'duoflow[http]'")

SIZE, CHUNK = 10_000, 4_000


def shard_of(name: str, data: bytes) -> Shard:
    lists = ("image_ids", "image_formats", "image_offsets", "image_bytes", "json_offsets", "json_bytes")
    empty = {key: [] for key in (*lists, "num_questions")}
    return Shard(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), **empty)


@pytest.fixture
def there(tmp_path: Path) -> tuple[Path, list[Shard]]:
    """Six shards of 10,000 bytes in a directory."""
    directory, shards = tmp_path / "there", []
    directory.mkdir()
    for number in range(6):
        data = b"".join(hashlib.sha256(f"{number}/{part}".encode()).digest() for part in range(313))[:SIZE]
        (directory / f"{number:06d}.tar").write_bytes(data)
        shards.append(shard_of(f"{number:06d}.tar", data))
    return directory, shards


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", CHUNK)


def opened(url: str, cache: Path, *, shards: float = 100, seconds: float = 20.0) -> CachedFiles:
    files = CachedFiles(url, CacheConfig(directory=str(cache), bytes=int(shards * SIZE), retry_seconds=seconds))
    files.cache.check()
    return files


def read(files: CachedFiles, shard: Shard) -> bytes:
    return os.pread(files.descriptor(shard), shard.bytes + 1, 0)


def assert_whole(files: CachedFiles, directory: Path, shard: Shard) -> None:
    assert read(files, shard) == (directory / shard.name).read_bytes()


FAILING = {
    "a server that is busy": Behaviour(status=lambda _, number: 503 if number in (1, 3) else None),
    "connections that break": Behaviour(cut=lambda _, number: 1_234 if number % 2 else None),
    "no ranges": Behaviour(ranges=False),
    "no ranges, and broken connections": Behaviour(ranges=False, cut=lambda _, number: 9_000 if number == 1 else None),
    "wrong bytes once": Behaviour(change=lambda _, number, data: b"?" + data[1:] if number == 1 else data),
    "a slow server": Behaviour(latency_seconds=0.02, bytes_per_second=200_000),
}


@pytest.mark.parametrize("how", FAILING)
def test_a_shard_arrives_whole_whatever_happens_to_it_on_its_way(there, tmp_path: Path, how: str):
    directory, shards = there
    with file_server(directory, FAILING[how]) as (url, _):
        files = opened(url, tmp_path / "cache")
        for shard in shards[:2]:
            assert_whole(files, directory, shard)


def test_a_network_that_is_dead_for_a_while_costs_nothing(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory, Behaviour(dead=True)) as (url, server):
        files = opened(url, tmp_path / "cache")
        threading.Timer(2.0, lambda: setattr(server, "dead", False)).start()
        assert_whole(files, directory, shards[0])
        assert sum(server.requests.values()) > 4


def test_what_is_dead_for_good_is_one_line_with_url_host_and_way_out(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory, Behaviour(dead=True)) as (url, _):
        files = opened(url, tmp_path / "cache", seconds=0.5)
        with pytest.raises(DataError, match=rf"^{url}/000000.tar: not a byte for 0.5 s on host .*retry_seconds$"):
            files.descriptor(shards[0])


def test_half_a_shard_is_gone_on_with(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory) as (url, server):
        files = opened(url, tmp_path / "cache")
        part = files.cache.part(remote_files._copy(shards[0]))
        part.write_bytes((directory / shards[0].name).read_bytes()[:7_000])
        assert_whole(files, directory, shards[0])
        assert server.bytes_sent[shards[0].name] == SIZE - 7_000


def test_half_a_shard_that_is_wrong_is_fetched_anew(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory) as (url, _):
        files = opened(url, tmp_path / "cache")
        files.cache.part(remote_files._copy(shards[0])).write_bytes(b"?" * 7_000)
        assert_whole(files, directory, shards[0])


def test_another_file_than_that_of_the_index_is_told_from_a_bad_transfer(there, tmp_path: Path):
    directory, shards = there
    (directory / shards[0].name).write_bytes(b"?" * SIZE)
    with file_server(directory) as (url, server):
        files = opened(url, tmp_path / "cache")
        with pytest.raises(DataError, match=r"000000\.tar: sha256 [0-9a-f]{64}, twice; the index says"):
            files.descriptor(shards[0])
        assert server.requests[shards[0].name] == 2 * 3, "three chunks, twice"
    changing = Behaviour(change=lambda _, number, data: str(number).encode() + data[1:])
    with file_server(directory, changing) as (url, _):
        files = opened(url, tmp_path / "cache")
        with pytest.raises(DataError, match=r"000001\.tar: came with 3 different digests"):
            files.descriptor(shards[1])


@pytest.mark.parametrize("length", [0, 5_000, 8_000])
def test_a_file_that_is_too_short_is_said_so(there, tmp_path: Path, length: int):
    directory, shards = there
    (directory / shards[0].name).write_bytes(b"?" * length)
    with file_server(directory) as (url, _), pytest.raises(DataError, match=f"ends at byte {length}, expected 10000"):
        opened(url, tmp_path / "cache").descriptor(shards[0])


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "is not there"), (403, "access refused"), (401, "access refused"), (400, "cannot be")],
)
def test_what_will_not_pass_is_not_tried_again(there, tmp_path: Path, status: int, said: str):
    directory, shards = there
    with file_server(directory, Behaviour(status=lambda *_: status)) as (url, server):
        files = opened(url, tmp_path / "cache")
        with pytest.raises(DataError, match=rf"{url}/000000\.tar: {said}.*host"):
            files.descriptor(shards[0])
        assert sum(server.requests.values()) == 1


def test_the_cache_is_never_larger_than_it_may_be(there, tmp_path: Path):
    """Counted by the server, at each request: the shard that is asked for, in full, beside what lies there."""
    directory, shards = there
    cache, most = tmp_path / "cache", 0

    def measure(_: str, __: int, data: bytes) -> bytes:
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in cache.iterdir()))
        return data

    with file_server(directory, Behaviour(change=measure)) as (url, server):
        files = opened(url, cache, shards=2.5)
        for shard in [*shards, *reversed(shards), shards[1]]:
            assert_whole(files, directory, shard)
            most = max(most, sum(path.stat().st_size for path in cache.iterdir()))
        assert SIZE < most <= 2.5 * SIZE
        assert server.requests[shards[5].name] == 3, "the one used last is still there when it is asked for again"


def test_a_shard_that_is_read_is_the_last_to_go_and_its_reader_reads_on(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory) as (url, server):
        reader, other = opened(url, tmp_path / "cache", shards=2), opened(url, tmp_path / "cache", shards=2)
        reader.expect({shards[0].name})
        held = reader.descriptor(shards[0])
        for shard in shards[1:]:
            assert_whole(other, directory, shard)
        assert reader.has(shards[0]), "the others had to go"
        greedy = opened(url, tmp_path / "cache", shards=1)
        assert_whole(greedy, directory, shards[1])
        assert not reader.has(shards[0])
        assert os.pread(held, SIZE, 0) == (directory / shards[0].name).read_bytes()
        assert server.requests[shards[0].name] == 3


def test_fetching_ahead_evicts_nothing_that_somebody_needs_soon(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory) as (url, _):
        files = opened(url, tmp_path / "cache", shards=2)
        holds = []
        for shard in shards[:2]:
            assert files.prefetch(shard)
            holds.append(files.hold(shard))
        assert not files.prefetch(shards[2]), "there is no room that may be taken"
        assert files.has(shards[0])
        assert files.has(shards[1])
        assert_whole(files, directory, shards[3])
        assert files.has(shards[0]), "who needs one at once takes the room of that which is needed last"
        assert not files.has(shards[1])
        for descriptor in holds:
            os.close(descriptor)
        assert files.prefetch(shards[2]) is True


def test_a_cache_smaller_than_a_shard_is_refused_and_nothing_is_fetched(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory) as (url, server):
        cache = CacheConfig(directory=str(tmp_path / "cache"), bytes=SIZE - 1)
        with pytest.raises(ConfigError, match=rf"^data.cache.bytes: 9999 is less than {url}/000000.tar alone"):
            open_files(url, shards, cache)
        assert not server.requests
        assert not (tmp_path / "cache").exists()


def test_a_full_disk_evicts_and_then_says_so(there, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory, shards = there
    write = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) > 1_000 and sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) >= SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    with file_server(directory) as (url, _):
        files = opened(url, tmp_path / "cache")
        assert_whole(files, directory, shards[0])
        monkeypatch.setattr(os, "pwrite", full)
        assert_whole(files, directory, shards[1])
        assert not files.has(shards[0])
        monkeypatch.setattr(files.cache, "free_disk", lambda *_, **__: False)
        with pytest.raises(DataError, match=r"cache: the disk is full.*data.cache.directory"):
            files.descriptor(shards[2])


def test_a_damaged_copy_is_fetched_again(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory) as (url, _):
        files = opened(url, tmp_path / "cache")
        assert_whole(files, directory, shards[0])
        files.expect(frozenset())
        (copy,) = (tmp_path / "cache").glob("*.tar")
        os.truncate(copy, 100)
        assert_whole(files, directory, shards[0])


def fetch_all(url: str, cache: Path, shards: list[Shard], chunk: int, digests) -> None:
    remote_files.CHUNK_BYTES = chunk
    files = opened(url, cache)
    for shard in shards:
        digests.put(hashlib.sha256(read(files, shard)).hexdigest())


@pytest.fixture
def started() -> Iterator[list[multiprocessing.Process]]:
    processes: list[multiprocessing.Process] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


def test_processes_share_one_download_of_each_shard(there, tmp_path: Path, started):
    directory, shards = there
    context = multiprocessing.get_context("spawn")
    with file_server(directory, Behaviour(latency_seconds=0.05)) as (url, server):
        digests = context.Queue()
        for _ in range(4):
            started.append(context.Process(target=fetch_all, args=(url, tmp_path / "cache", shards[:3], SIZE, digests)))
            started[-1].start()
        found = [digests.get(timeout=120) for _ in range(12)]
        assert sorted(found) == sorted([shard.sha256 for shard in shards[:3]] * 4)
        assert server.requests == {shard.name: 1 for shard in shards[:3]}


def test_a_killed_fetch_is_gone_on_with_by_another_process(there, tmp_path: Path, started):
    directory, shards = there
    context = multiprocessing.get_context("spawn")
    halted = threading.Event()

    def slow(_: str, number: int, data: bytes) -> bytes:
        if number == 3:
            halted.set()
            time.sleep(5)
        return data

    with file_server(directory, Behaviour(change=slow)) as (url, server):
        digests = context.Queue()
        process = context.Process(target=fetch_all, args=(url, tmp_path / "cache", shards[:1], CHUNK, digests))
        started.append(process)
        process.start()
        assert halted.wait(120)
        files = opened(url, tmp_path / "cache")
        waiting = threading.Timer(0.5, lambda: os.kill(process.pid, signal.SIGKILL))
        waiting.start()
        assert_whole(files, directory, shards[0])
        assert server.requests[shards[0].name] == 4, "two chunks were there; the third was asked for twice"


def test_who_waits_for_a_fetch_that_fails_hears_why_and_does_not_try_anew(there, tmp_path: Path):
    directory, shards = there
    refused = threading.Event()

    def refuse(_: str, __: int) -> int:
        refused.wait(20)
        return 403

    with file_server(directory, Behaviour(status=refuse)) as (url, server):
        first, second = (opened(url, tmp_path / "cache") for _ in range(2))
        faults: list[str] = []

        def attempt(files: CachedFiles) -> None:
            try:
                files.descriptor(shards[0])
            except DataError as error:
                faults.append(str(error))

        threads = [threading.Thread(target=attempt, args=(files,)) for files in (first, second)]
        for thread in threads:
            thread.start()
            while not server.requests:
                time.sleep(0.01)
        time.sleep(0.3)
        refused.set()
        for thread in threads:
            thread.join()
        assert len(faults) == 2
        assert faults[0] == faults[1]
        assert sum(server.requests.values()) == 1


def test_unfinished_shards_that_nobody_fetches_make_room(there, tmp_path: Path):
    directory, shards = there
    with file_server(directory) as (url, _):
        files = opened(url, tmp_path / "cache", shards=1)
        assert files.cache.make_room(remote_files._copy(shards[5]), Spare.UNUSED), "as by a process that was killed"
        assert_whole(files, directory, shards[0])
        assert files.cache.used_bytes() == SIZE
