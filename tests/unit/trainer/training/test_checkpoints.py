"""Whatever is interrupted, damaged or full, a run finds a whole checkpoint again and keeps what its pointers name."""

import logging
import os
import shutil

import pytest

from shards.errors import DataError, UserError
from tests.unit.trainer.training.checkpoint_states import bits, engine_state, full_disk, kill_at_each_touch_of_the_disk
from trainer.engine.distributed import World
from trainer.engine.state_file import MODEL, STATE
from trainer.training.checkpoints import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run" / "checkpoints", World())


def save(checkpoints: Checkpoints, step: int, *pointers: str) -> str:
    name = checkpoints.save(f"step{step}", engine_state(step, step=step), {"step": step})
    for pointer in pointers:
        checkpoints.publish(pointer, name)
    return name


def on_disk(checkpoints: Checkpoints) -> set[str]:
    return {path.name for path in checkpoints.directory.iterdir()}


def damage(checkpoints: Checkpoints, name: str) -> None:
    path = checkpoints.path(name) / MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_run_without_checkpoints_has_none(checkpoints):
    assert checkpoints.newest() is None
    assert checkpoints.pointed("best") is None


def test_the_published_checkpoint_is_found_and_loaded_as_it_was_saved(checkpoints):
    save(checkpoints, 1, "last", "best")
    save(checkpoints, 2, "last")
    assert (checkpoints.newest(), checkpoints.pointed("best")) == ("step2", "step1")
    state, progress = checkpoints.load("step2")
    assert bits(state) == bits(engine_state(2, step=2))
    assert progress == {"step": 2}


def test_only_what_a_pointer_names_is_kept(checkpoints):
    save(checkpoints, 1, "last", "best")
    save(checkpoints, 2, "last")
    save(checkpoints, 3, "last")
    assert on_disk(checkpoints) == {"last", "best", "step1", "step3"}
    save(checkpoints, 4, "last", "best")
    assert on_disk(checkpoints) == {"last", "best", "step4"}


def test_pruning_leaves_alone_what_is_not_a_checkpoint(checkpoints):
    save(checkpoints, 1, "last")
    (checkpoints.directory / "notes").mkdir()
    (checkpoints.directory / "notes.txt").write_text("mine")
    save(checkpoints, 2, "last")
    assert on_disk(checkpoints) == {"last", "step2", "notes", "notes.txt"}


def test_an_unpublished_checkpoint_does_not_count_beside_a_published_one(checkpoints):
    save(checkpoints, 1, "last")
    save(checkpoints, 2)
    assert checkpoints.newest() == "step1"


def test_without_a_pointer_the_newest_by_number_is_taken(checkpoints, caplog):
    for step in (9, 10, 2):
        save(checkpoints, step)
    assert checkpoints.newest() == "step10"
    assert "last names no checkpoint; taking the newest, step10" in caplog.text


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one_and_said_so(checkpoints, caplog):
    save(checkpoints, 1, "last", "best")
    save(checkpoints, 2, "last")
    damage(checkpoints, "step2")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() == "step1"
    assert "going back to checkpoint step1" in caplog.text
    assert f"step2/{MODEL}: damaged checkpoint" in caplog.text


def test_a_pointer_to_nothing_falls_back_to_what_is_intact(checkpoints):
    save(checkpoints, 1, "last", "best")
    save(checkpoints, 2, "last")
    shutil.rmtree(checkpoints.path("step2"))
    assert checkpoints.newest() == "step1"


def test_a_run_whose_checkpoints_are_all_damaged_is_not_silently_started_again(checkpoints):
    save(checkpoints, 1, "last")
    damage(checkpoints, "step1")
    with pytest.raises(DataError, match=r"no checkpoint is intact; start again with --fresh .*step1/model.safetensors"):
        checkpoints.newest()


@pytest.mark.parametrize("content", ["../../elsewhere\n", "", "\x00", "/etc\n"])
def test_a_pointer_leads_nowhere_but_to_a_checkpoint_of_this_run(checkpoints, content):
    save(checkpoints, 1, "last")
    (checkpoints.directory / "last").write_text(content)
    assert checkpoints.newest() == "step1"


def test_nothing_is_pruned_while_a_pointer_cannot_be_read(checkpoints):
    save(checkpoints, 1, "last", "best")
    save(checkpoints, 2, "last")
    (checkpoints.directory / "best").write_text("?\n")
    save(checkpoints, 3, "last")
    assert {"step1", "step2", "step3"} <= on_disk(checkpoints)


def test_saving_a_step_twice_never_touches_the_first_one(checkpoints):
    save(checkpoints, 5, "last")
    again = checkpoints.save("step5", engine_state(6, step=5), {"step": 5})
    assert again == "step5-2"
    assert bits(checkpoints.load("step5")[0]) == bits(engine_state(5, step=5))
    checkpoints.publish("last", again)
    assert checkpoints.newest() == "step5-2"
    assert on_disk(checkpoints) == {"last", "step5-2"}


def test_a_checkpoint_is_not_begun_without_room_for_it(checkpoints, monkeypatch):
    save(checkpoints, 1, "last")
    usage = shutil.disk_usage(checkpoints.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UserError, match=r"step2: checkpoint not written \(.*needed and 0.0 MiB free\)"):
        save(checkpoints, 2)
    assert on_disk(checkpoints) == {"last", "step1"}


@pytest.mark.parametrize("room", [0, 100, 300])
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint_and_its_pointer(checkpoints, room):
    save(checkpoints, 1, "last")
    with (
        full_disk(room),
        pytest.raises(UserError, match=r"step2: checkpoint not written .* earlier checkpoints are intact"),
    ):
        save(checkpoints, 2)
    assert on_disk(checkpoints) == {"last", "step1"}
    assert checkpoints.newest() == "step1"


def test_a_pointer_that_cannot_be_written_keeps_naming_what_it_named(checkpoints):
    save(checkpoints, 1, "last")
    name = save(checkpoints, 2)
    with full_disk(0), pytest.raises(UserError, match="last: not written"):
        checkpoints.publish("last", name)
    assert checkpoints.newest() == "step1"
    checkpoints.publish("last", name)
    assert on_disk(checkpoints) == {"last", "step2"}


def test_a_run_killed_at_any_moment_continues_from_the_old_or_the_new_checkpoint(checkpoints):
    save(checkpoints, 1, "last", "best")
    before = checkpoints.directory.with_name("before")
    shutil.copytree(checkpoints.directory, before)
    found = []
    for touch in kill_at_each_touch_of_the_disk(lambda: save(checkpoints, 2, "last", "best")):
        found.append(checkpoints.newest())
        assert found[-1] in ("step1", "step2"), f"after {touch} touches"
        assert checkpoints.pointed("best") in ("step1", "step2"), f"after {touch} touches"
        assert save(checkpoints, 3, "last", "best").startswith("step3")
        assert on_disk(checkpoints) == {"last", "best", "step3"}, "what the killed process left should be gone"
        shutil.rmtree(checkpoints.directory)
        shutil.copytree(before, checkpoints.directory)
    assert found == sorted(found), "once the new one was found, no later kill should lose it"
    assert set(found) == {"step1", "step2"}


def test_a_checkpoint_without_its_record_is_damaged(checkpoints):
    save(checkpoints, 1, "last")
    os.remove(checkpoints.path("step1") / STATE)
    with pytest.raises(DataError, match=f"step1/{STATE}: damaged checkpoint"):
        checkpoints.load("step1")
