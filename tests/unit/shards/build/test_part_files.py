"""Parts of a build in files: what a worker lays aside is what the build takes up, or it is a line."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.build import part_files
from shards.build.media import ImageDirectory
from shards.build.packing import Packed, Source, Task, Unusable, pack
from shards.build.part_files import Part, pack_part, take_up
from shards.errors import DataError
from tests.corpora import Corpus

ENDINGS = ("", ".jpg", ".png", ".webp")


@pytest.fixture
def part(corpus: Corpus, tmp_path: Path) -> Part:
    (tmp_path / "parts").mkdir()
    return Part(7, tasks(corpus, *sorted(path.stem for path in corpus.images.iterdir())), tmp_path / "parts")


def tasks(corpus: Corpus, *names: str) -> list[Task]:
    directory = ImageDirectory(corpus.images, ENDINGS)
    return [Task(Source(name, (directory.origin(name),)), [], None, "gqa") for name in names]


def refuse(line: str) -> None:
    pytest.fail(f"nobody died: {line}")


def test_what_is_taken_up_is_what_was_packed_and_no_file_stays(part):
    packed = pack_part(part)
    assert [path.suffix for path in part.directory.iterdir()] == [".part"]
    assert all(not image.data for aside in packed.results for image in aside.packed.sample.images)
    assert list(take_up(packed, part, refuse)) == [pack(task) for task in part.tasks]
    assert list(part.directory.iterdir()) == []


def test_another_attempt_is_told_of_and_removed_and_other_parts_are_left(part):
    half, other = part.directory / "000007.node1.cluster.local.4242.aa.partial", part.directory / "000070.n.1.bb.part"
    half.write_bytes(b"half")
    other.write_bytes(b"another part")
    packed, lines = pack_part(part), []
    results = list(take_up(packed, part, lines.append))
    assert results == [pack(task) for task in part.tasks]
    assert list(part.directory.iterdir()) == [other]
    assert lines == [f"packing: process 4242 on node1.cluster.local was killed in part 7; done again on {packed.host}"]


def test_two_attempts_never_share_a_file(part):
    first, second = pack_part(part), pack_part(part)
    assert first.path != second.path
    first.path.write_bytes(b"")
    assert [type(result) for result in take_up(second, part, lambda _: None)] == [Packed] * len(part.tasks)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"X" + data[1:], lambda _: b""])
def test_a_file_that_reads_otherwise_than_it_was_written_is_one_line(part, change: Callable[[bytes], bytes]):
    packed = pack_part(part)
    packed.path.write_bytes(change(packed.path.read_bytes()))
    with pytest.raises(DataError, match=r"sample '\d+' does not read as it was written; expected a file system"):
        list(take_up(packed, part, refuse))


def test_a_file_that_is_not_there_is_one_line(part):
    packed = pack_part(part)
    packed.path.unlink()
    with pytest.raises(DataError, match=f"No such file or directory, and {packed.host} has written it; expected"):
        list(take_up(packed, part, refuse))


def test_a_fault_comes_after_what_was_before_it(corpus, part):
    (corpus.images / "broken.jpg").write_bytes(b"no image")
    bad = part._replace(tasks=tasks(corpus, "broken", part.tasks[0].source.sample_id, "../out", "never"))
    packed = pack_part(bad)
    results = take_up(packed, bad, refuse)
    assert isinstance(next(results), Unusable)
    assert next(results) == pack(bad.tasks[1])
    with pytest.raises(DataError, match=r"'\.\./out': leads out of the image directory"):
        next(results)


def test_an_image_that_only_the_worker_misses_is_not_left_out(corpus, part):
    name = part.tasks[1].source.sample_id
    (path,) = corpus.images.glob(f"{name}.*")
    path.rename(corpus.images / "away")
    packed = pack_part(part)
    (corpus.images / "away").rename(path)
    with pytest.raises(DataError, match=f"^{packed.host}: .*{name}.*, but here it is not so; see that every node"):
        list(take_up(packed, part, refuse))


def test_a_full_disk_on_a_node_is_one_line_with_its_name(part, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(part_files, "_lay_aside", full)
    packed = pack_part(part)
    with pytest.raises(DataError, match=f"No space left on device on {packed.host}; nothing was changed"):
        list(take_up(packed, part, refuse))
