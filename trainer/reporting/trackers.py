"""Weights & Biases and MLflow, through their own libraries: metrics, pictures, and what the recipe sets.

Each reads its own environment variables, such as WANDB_PROJECT and MLFLOW_TRACKING_URI. A run that is started again
goes on under the same name there.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from shards.errors import ConfigError
from trainer.config.schema import Tracker
from trainer.reporting.recorders import Recorder, Scalar

PROJECT = "duoflow"
"""Where neither WANDB_PROJECT nor MLFLOW_EXPERIMENT_NAME says another one."""
RUN_TAG = "duoflow.run"
BEST = "best/"


def check_tracker(tracker: Tracker | None) -> None:
    """Whether a tracker's library is here.

    Raises:
        ConfigError: it is not.
    """
    if tracker is not None and find_spec(tracker) is None:
        raise ConfigError(f"logging.tracker: {tracker} is not installed; pip install 'duoflow[{tracker}]'")


def open_tracker(tracker: Tracker, *, name: str, run_id: str, directory: Path) -> Recorder:
    """The recorder of a run, or of the same run when it was started before.

    Args:
        name: what people call the run.
        run_id: what tells it from every other.
        directory: where the tracker may keep files of its own.

    Raises:
        OSError: the tracker cannot be reached.
    """
    kind = WandbRecorder if tracker == "wandb" else MlflowRecorder
    return kind(name=name, run_id=run_id, directory=directory)


def _as_os_error(act: Callable[..., Any]) -> Callable[..., Any]:
    """What a tracker raises, of whatever kind, as what it means here: it could not be written."""

    @wraps(act)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return act(*args, **kwargs)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    return guarded


class WandbRecorder(Recorder):
    """Weights & Biases."""

    @_as_os_error
    def __init__(self, *, name: str, run_id: str, directory: Path) -> None:
        import wandb  # an extra

        self._wandb = wandb
        directory.mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(project=project, name=name, id=run_id, resume="allow", dir=str(directory))

    @_as_os_error
    def introduce(self, settings: Mapping[str, Scalar], accuracies: Sequence[str]) -> None:  # noqa: ARG002
        self._run.config.update(dict(settings), allow_val_change=True)

    @_as_os_error
    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        self._run.log({name: value for name, value in values.items() if not isinstance(value, str)}, step=step)

    @_as_os_error
    def best(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.summary.update({f"{BEST}{name}": value for name, value in metrics.items()} | {f"{BEST}step": step})

    @_as_os_error
    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    @_as_os_error
    def close(self) -> None:
        self._run.finish()


class MlflowRecorder(Recorder):
    """MLflow."""

    @_as_os_error
    def __init__(self, *, name: str, run_id: str, directory: Path) -> None:  # noqa: ARG002 - files go where it says
        import mlflow  # an extra

        self._client = mlflow.MlflowClient()
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(wanted)
        experiment = self._client.create_experiment(wanted) if found is None else found.experiment_id
        before = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        if before:
            self._id = before[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, tags={RUN_TAG: run_id}, run_name=name).info.run_id

    @_as_os_error
    def introduce(self, settings: Mapping[str, Scalar], accuracies: Sequence[str]) -> None:  # noqa: ARG002
        known = self._client.get_run(self._id).data.params
        for name, value in settings.items():
            if name not in known:  # MLflow's parameters never change
                self._client.log_param(self._id, name, value)

    @_as_os_error
    def record(self, step: int, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            if not isinstance(value, str):
                self._client.log_metric(self._id, _mlflow_name(name), value, step=step)

    @_as_os_error
    def best(self, step: int, metrics: Mapping[str, float]) -> None:
        self.record(step, {f"{BEST}{name}": value for name, value in metrics.items()})

    @_as_os_error
    def text(self, name: str, text: str) -> None:
        self._client.log_text(self._id, text, f"{name}.txt")

    @_as_os_error
    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._client.log_image(self._id, image, artifact_file=f"{name}/{step:08d}.png")

    @_as_os_error
    def close(self) -> None:
        self._client.set_terminated(self._id)


def _mlflow_name(name: str) -> str:
    """MLflow allows no @ and no + in a name."""
    return name.replace("@", "_at_").replace("+", "_and_more")
