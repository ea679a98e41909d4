"""A checkpoint directory is whole or absent, and every damage to it is found and named."""

import hashlib
import json
import os
import pickle
import random
import shutil

import pytest
import safetensors

from shards.atomic import write_atomically
from shards.errors import DataError
from tests.unit.trainer.training.checkpoint_states import bits, engine_state, full_disk, kill_at_each_touch_of_the_disk
from trainer.engine.state_file import (
    MODEL,
    OPTIMIZER,
    STATE,
    read_checkpoint,
    read_record,
    verify_checkpoint,
    write_checkpoint,
)

FILES = (MODEL, OPTIMIZER, STATE)
PROGRESS = {"epoch": 2, "best": None, "metrics": {"val/accuracy": 0.125, "small": 1e-05}, "name": "é"}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path, "step7", engine_state(), PROGRESS)


def test_what_is_written_is_read_back_bit_by_bit(checkpoint):
    state, progress = read_checkpoint(checkpoint)
    assert bits(state) == bits(engine_state())
    assert progress == PROGRESS


def test_the_small_values_are_readable_without_the_tensors(checkpoint):
    (checkpoint / MODEL).unlink()
    assert read_record(checkpoint).progress == PROGRESS
    assert read_record(checkpoint).optimizer_step == 7


def test_the_model_file_is_plain_safetensors_with_the_names_of_the_parameters(checkpoint):
    with safetensors.safe_open(checkpoint / MODEL, framework="pt") as file:
        assert set(file.keys()) == {"fusion.weight", "fusion.bias", "gate"}


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_changes_what_is_read(checkpoint, name):
    path, intact = checkpoint / name, (checkpoint / name).read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        position = rng.randrange(len(intact) * 8)
        damaged = bytearray(intact)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(checkpoint)
        except DataError:
            continue
        assert name == STATE, "only JSON has two spellings of one value, such as 1e-05 and 1E-05"
        assert (bits(found[0]), found[1]) == (bits(engine_state()), PROGRESS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_or_missing_is_named(checkpoint, name):
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=name):
        verify_checkpoint(checkpoint)
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: damaged checkpoint: No such file"):
        verify_checkpoint(checkpoint)


def test_a_format_of_the_future_is_refused_rather_than_misread(checkpoint):
    content = json.loads((checkpoint / STATE).read_text())
    del content["sha256"]
    content["format"] = 2
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / STATE).write_text(json.dumps(content | {"sha256": digest}))
    with pytest.raises(DataError, match="checkpoint format 2, this version of duoflow reads 1"):
        read_record(checkpoint)


class _Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_pickle_with_a_right_checksum_is_not_executed(checkpoint, tmp_path, name):
    payload = pickle.dumps(_Payload(tmp_path / "canary"))
    (checkpoint / name).write_bytes(payload)
    content = json.loads((checkpoint / STATE).read_text())
    del content["sha256"]
    content["files"][name] = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / STATE).write_text(json.dumps(content | {"sha256": digest}))
    with pytest.raises(DataError, match=name):
        read_checkpoint(checkpoint)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("room", [0, 100, 600])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, room):
    with full_disk(room), pytest.raises((OSError, safetensors.SafetensorError)):
        write_checkpoint(tmp_path, "step7", engine_state(width=50), PROGRESS)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint_or_none(tmp_path):
    seen = set()
    for _ in kill_at_each_touch_of_the_disk(lambda: write_checkpoint(tmp_path, "step7", engine_state(), PROGRESS)):
        whole = (tmp_path / "step7").exists()
        seen.add(whole)
        if whole:
            assert bits(read_checkpoint(tmp_path / "step7")[0]) == bits(engine_state())
            shutil.rmtree(tmp_path / "step7")
    assert seen == {True, False}, "kills should fall before and after the checkpoint is in place"


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "last"
    write_atomically(path, b"old\n")
    with full_disk(1), pytest.raises(OSError, match="File too large"):
        write_atomically(path, b"new and longer\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    for _ in kill_at_each_touch_of_the_disk(lambda: write_atomically(path, b"new\n")):
        assert path.read_text() in ("old\n", "new\n")
    assert path.read_text() == "new\n"
