"""A disk that takes nothing and sizes beyond the memory are found before anything is built."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from shards.errors import ConfigError, UserError
from trainer.config import load_config
from trainer.run_directory import RunDirectory
from trainer.training import room
from trainer.training.room import check_disk, check_memory, scratch_parameters


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("model: {freeze: []}\n")
    return path


def test_a_disk_with_room_takes_a_run_whose_directory_is_not_there_yet(tmp_path: Path):
    check_disk(RunDirectory(tmp_path / "runs" / "tiny"), 1)
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_named_with_what_is_needed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    check_disk(RunDirectory(tmp_path / "runs" / "tiny"), 10**9 - 1)
    with pytest.raises(
        UserError, match=r"^run\.directory: 1\.0 GB are free .* the checkpoints of this run take 2\.0 GB"
    ):
        check_disk(RunDirectory(tmp_path / "runs" / "tiny"), 2 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=r"0\.0 GB are free .* a run has to write something"):
        check_disk(RunDirectory(tmp_path / "runs" / "tiny"))


def test_a_read_only_disk_is_named(tmp_path: Path, monkeypatch):
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=real.f_flag | os.ST_RDONLY))
    with pytest.raises(UserError, match=rf"^run\.directory: {tmp_path} cannot be written to"):
        check_disk(RunDirectory(tmp_path / "runs" / "tiny"))


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=rf"^run\.directory: {tmp_path}/runs is a file"):
        check_disk(RunDirectory(tmp_path / "runs" / "tiny"))


def test_sizes_beyond_the_memory_are_refused_by_the_machine_that_computes_in_it(recipe: Path, monkeypatch):
    config = load_config(recipe, ["model.scratch.width=65536", "model.fusion.heads=8"])
    monkeypatch.setattr(room, "memory_bytes", lambda: 10**11)
    with pytest.raises(ConfigError, match=r"^model\.scratch: width 65,536 .* this machine has 100\.0 GB; lower"):
        check_memory(config, on_gpu=False)
    check_memory(config, on_gpu=True)
    check_memory(load_config(recipe), on_gpu=False)


def test_the_count_is_a_lower_bound_of_what_is_built(tmp_path: Path):
    from tests.runs import Project

    project = Project.write(tmp_path)
    built = project.model().objective
    counted = scratch_parameters(project.config().model, 2)
    assert 0 < counted <= sum(parameter.numel() for parameter in built.parameters())
