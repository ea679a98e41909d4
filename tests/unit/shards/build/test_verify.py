"""Verification finds a changed byte wherever it is, and lists every fault, not the first."""

import hashlib
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.build.verify import verify_shards
from shards.errors import DataError
from shards.format.columns import COLUMNS_NAME
from shards.format.index import INDEX_NAME, Shard, SplitIndex, encode_index, is_intact, read_index
from shards.format.records import decode_sample, encode_sample
from tests.corpora import build_corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SplitIndex]:
    return build_corpus(tmp_path_factory.mktemp("built"), num_images=9, questions_per_image=3, shard_bytes=10_240)


@pytest.fixture
def copy(built: tuple[Path, SplitIndex], tmp_path: Path) -> tuple[Path, SplitIndex]:
    shutil.copytree(built[0], tmp_path / "shards")
    return tmp_path / "shards", built[1]


def flip(path: Path, position: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def faults_of(directory: Path) -> list[str]:
    try:
        return verify_shards(directory).faults
    except DataError as error:
        return [str(error)]


def reseal(directory: Path, index: SplitIndex) -> None:
    """Write an index whose own digest and whose shard digests fit: only the content can be wrong. Its columns, which
    are those of the index before, go."""
    (directory / COLUMNS_NAME).unlink(missing_ok=True)
    shards = []
    for shard in index.shards:
        data = (directory / shard.name).read_bytes()
        shards.append(msgspec.structs.replace(shard, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    (directory / INDEX_NAME).write_bytes(encode_index(msgspec.structs.replace(index, shards=shards)))


def overwrite(directory: Path, shard: Shard, offset: int, data: bytes) -> None:
    with (directory / shard.name).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def edit_sample(directory: Path, shard: Shard, position: int, old: bytes, new: bytes) -> None:
    """Replace text of a sample's JSON by text of the same length."""
    assert len(old) == len(new)
    offset, size = shard.json_offsets[position], shard.json_bytes[position]
    data = (directory / shard.name).read_bytes()[offset : offset + size]
    assert old in data
    overwrite(directory, shard, offset, data.replace(old, new, 1))


def test_a_fresh_build_has_no_fault(built):
    directory, index = built
    report = verify_shards(directory)
    assert report.faults == []
    assert (report.shards, report.images) == (len(index.shards), 9)
    assert report.questions == index.counts["questions"]
    assert report.bytes == sum(shard.bytes for shard in index.shards)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), which=st.integers(0, 100))
def test_a_changed_byte_is_found_anywhere(built, place, mask, which):
    directory, _ = built
    files = sorted(path for path in directory.iterdir() if path.is_file())
    path = files[which % len(files)]
    position = int(place * path.stat().st_size)
    flip(path, position, mask)
    try:
        assert faults_of(directory), f"byte {position} of {path.name} xor {mask} goes unnoticed"
    finally:
        flip(path, position, mask)
    assert is_intact((directory / INDEX_NAME).read_bytes())


def test_every_byte_of_the_index_is_protected(built):
    data = (built[0] / INDEX_NAME).read_bytes()
    assert is_intact(data)
    for position in range(len(data)):
        assert not is_intact(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


def test_a_damaged_index_is_not_read(copy):
    directory, _ = copy
    path = directory / INDEX_NAME
    path.write_bytes(path.read_bytes().replace(b'"images": 9', b'"images": 8'))
    with pytest.raises(DataError, match="damaged or edited"):
        read_index(directory)
    assert f"{INDEX_NAME}: its digest does not fit its content" in faults_of(directory)


def test_all_faults_are_listed_at_once(copy):
    directory, index = copy
    first, second, third = index.shards[:3]
    flip(directory / first.name, first.image_offsets[0] - 512, 0xFF)
    flip(directory / first.name, first.json_offsets[0], 0xFF)
    (directory / second.name).unlink()
    (directory / third.name).write_bytes((directory / third.name).read_bytes()[: third.json_offsets[0] + 5])
    (directory / "999999.tar").write_bytes(b"")
    text = "\n".join(faults_of(directory))
    for fault in (
        f"{first.name}: sha256 ",
        f"{first.name}: 000000000.",
        f"{first.name}: 000000000.json: not a sample",
        f"{second.name}: missing",
        f"{third.name}: {third.json_offsets[0] + 5} bytes; the index says {third.bytes}",
        ".json: not a sample: the file ends at byte",
        "999999.tar: not in the index",
        "counts.questions is",
        "answers are not those of the shards",
    ):
        assert fault in text, f"{fault!r} is not in\n{text}"


def test_an_image_that_cannot_be_decoded_is_found_even_if_all_digests_fit(copy):
    directory, index = copy
    shard = index.shards[0]
    overwrite(directory, shard, shard.image_offsets[0], b"not an image")
    reseal(directory, index)
    [fault] = faults_of(directory)
    assert "000000000.jpg: not a JPEG, PNG or WebP image" in fault


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b'"width":48', b'"width":84', "000000000.jpg: 48 x 40 pixels; expected 84 x 40"),
        (b'"image_id":"01000"', b'"image_id":"99999"', "000000000.json: image id '99999'; the index says '01000'"),
        (b'"structural":"', b'"structural":7', "000000000.json: not a sample"),
    ],
)
def test_a_sample_that_disagrees_is_found_even_if_all_digests_fit(copy, old, new, fault):
    directory, index = copy
    edit_sample(directory, index.shards[0], 0, old, new)
    reseal(directory, index)
    assert fault in "\n".join(faults_of(directory))


def test_an_answer_that_changed_does_not_fit_the_tables(copy):
    directory, index = copy
    shard = index.shards[0]
    data = (directory / shard.name).read_bytes()
    sample = decode_sample(data[shard.json_offsets[0] :][: shard.json_bytes[0]])
    answer = sample.questions[0].answer
    question = msgspec.structs.replace(sample.questions[0], answer="x" * len(answer))
    changed = msgspec.structs.replace(sample, questions=(question, *sample.questions[1:]))
    overwrite(directory, shard, shard.json_offsets[0], encode_sample(changed))
    reseal(directory, index)
    assert f"{INDEX_NAME}: answers are not those of the shards" in faults_of(directory)


def test_a_question_id_that_occurs_twice_is_named(copy):
    directory, index = copy
    shard, other = index.shards[0], index.shards[-1]
    names = []
    for part in (shard, other):
        data = (directory / part.name).read_bytes()[part.json_offsets[0] :][: part.json_bytes[0]]
        names.append(decode_sample(data).questions[0].question_id)
    edit_sample(directory, other, 0, b'"question_id":"' + names[1].encode(), b'"question_id":"' + names[0].encode())
    reseal(directory, index)
    text = "\n".join(faults_of(directory))
    assert (
        f"question id '{names[0]}' occurs 2 times: image '{shard.image_ids[0]}', image '{other.image_ids[0]}'" in text
    )


def test_tables_that_do_not_fit_together_are_a_fault_and_not_a_crash(copy):
    directory, index = copy
    shards = [msgspec.structs.replace(index.shards[0], image_offsets=[]), *index.shards[1:]]
    reseal(directory, msgspec.structs.replace(index, shards=shards))
    [fault] = faults_of(directory)
    assert "000000.tar: 0 image_offsets for" in fault


@pytest.mark.parametrize("offset", [-5, 0, 511, 10**15])
def test_a_nonsensical_offset_is_a_fault_and_not_a_crash(copy, offset):
    directory, index = copy
    first = index.shards[0]
    for name in ("image_offsets", "json_offsets"):
        shard = msgspec.structs.replace(first, **{name: [offset, *getattr(first, name)[1:]]})
        reseal(directory, msgspec.structs.replace(index, shards=[shard, *index.shards[1:]]))
        assert any(f"at {offset}; expected" in fault for fault in faults_of(directory))


def test_shards_out_of_order_are_found(copy):
    directory, index = copy
    reseal(directory, msgspec.structs.replace(index, shards=index.shards[::-1]))
    text = "\n".join(faults_of(directory))
    assert f"{INDEX_NAME}: shard 0 is called {index.shards[-1].name!r}; expected '000000.tar'" in text
    assert "expected each id once, in order" in text


def test_no_index_is_an_error_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"no index\.json in it; .*duoflow shards build"):
        verify_shards(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        verify_shards(tmp_path / "nowhere")


def test_more_processes_find_the_same(copy):
    directory, index = copy
    flip(directory / index.shards[-1].name, index.shards[-1].json_offsets[0], 0xFF)
    assert verify_shards(directory, workers=2) == verify_shards(directory)
