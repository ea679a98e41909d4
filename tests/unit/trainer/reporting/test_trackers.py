"""Trackers through their own libraries, without a network: what they kept is read back."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from shards.errors import ConfigError
from trainer.reporting import trackers
from trainer.reporting.recorders import Recorder, Recorders
from trainer.reporting.trackers import check_tracker, open_tracker


def run_twice(tracker: str, directory: Path) -> None:
    """A run that was started again."""
    for steps in ((1, 2), (3,)):
        recorder = open_tracker(tracker, name="tiny", run_id="abc123", directory=directory)
        recorder.introduce({"optim.lr": 1e-3, "task": "gqa"}, ["val/accuracy"])
        for step in steps:
            recorder.record(step, {"train/loss": 1.0 / step, "val/hit@1": 0.5, "speed/bound_by": "data"})
        recorder.best(steps[-1], {"val/accuracy": 0.25 * steps[-1]})
        recorder.text("recipe", "optim: {lr: 0.001}")
        recorder.picture(steps[-1], "val/confusion", Image.new("RGB", (4, 4), "red"))
        recorder.close()


def test_mlflow_has_one_run_with_all_of_both_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/kept.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "games")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/kept.db")
    run_twice("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("games").experiment_id])
    assert run.info.run_name == "tiny"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optim.lr": "0.001", "task": "gqa"}
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]
    assert run.data.metrics["best/val/accuracy"] == 0.75
    assert run.data.metrics["val/hit_at_1"] == 0.5


def test_wandb_keeps_a_run_on_this_disk_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_twice("wandb", tmp_path)
    kept = sorted((tmp_path / "wandb").glob("offline-run-*-abc123"))
    assert kept
    assert all(list(run.glob("run-abc123.wandb")) for run in kept)


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"logging.tracker: mlflow is not installed; pip install 'duoflow\[mlflow\]'"):
        check_tracker("mlflow")
    check_tracker(None)


def test_a_tracker_that_fails_later_is_named_and_training_goes_on(caplog: pytest.LogCaptureFixture):
    class Gone(Recorder):
        @trackers._as_os_error
        def record(self, step, values) -> None:  # noqa: ARG002
            raise KeyError("a fault of theirs")

    with caplog.at_level(logging.WARNING):
        Recorders([Gone()]).record(1, {})
    assert "Gone cannot write (KeyError: 'a fault of theirs'); training goes on" in caplog.text
