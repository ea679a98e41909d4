"""The relative paths of a run are found from any working directory, and stay as they are where that is not needed."""

from pathlib import Path

import pytest

from trainer.config import load_config, load_run_config
from trainer.config.run_paths import started_in
from trainer.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunDirectory:
    """Of a run that was started in tmp_path/project."""
    project = tmp_path / "project"
    (project / "data" / "train").mkdir(parents=True)
    (project / "weights" / "blip").mkdir(parents=True)
    monkeypatch.chdir(project)
    (project / "tiny.yaml").write_text(
        "data: {train: data/train, val: data/gone, test: 's3://bucket/test'}\n"
        "model: {freeze: [], vision: weights/blip, match: Salesforce/blip}\n"
    )
    config = load_config("tiny.yaml")
    written = RunDirectory(project / "runs" / "tiny")
    written.create()
    written.write_config(config)
    return written


def test_from_where_it_was_started_everything_stays_as_it_is(run: RunDirectory):
    assert run.read_config() == load_run_config(run.config) == load_config("tiny.yaml")


def test_from_elsewhere_what_exists_there_is_found_and_the_rest_stays(run: RunDirectory, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_run_config(run.config.relative_to(tmp_path))
    project = tmp_path / "project"
    assert config.data.train == str(project / "data/train")
    assert config.model.vision == str(project / "weights/blip")
    assert (config.data.val, config.data.test) == ("data/gone", "s3://bucket/test")
    assert config.model.match == "Salesforce/blip"


def test_what_lies_in_the_working_directory_comes_first(run: RunDirectory, tmp_path: Path, monkeypatch):
    (tmp_path / "other" / "data" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    assert load_run_config(run.config).data.train == "data/train"


@pytest.mark.parametrize(
    ("directory", "lies", "start"),
    [
        ("runs", "/a/runs/x/config.yaml", Path("/a")),
        ("out/runs", "/a/b/out/runs/x/config.yaml", Path("/a/b")),
        ("runs", "/a/moved/x/config.yaml", None),
        ("/a/runs", "/a/runs/x/config.yaml", None),
        ("../runs", "/a/runs/x/config.yaml", None),
    ],
)
def test_where_a_run_was_started(directory: str, lies: str, start: Path | None):
    assert started_in(Path(lies), {"run": {"directory": directory}}) == start
