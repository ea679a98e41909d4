"""Tiny runs: a recipe over a corpus drawn by code, seconds to train, and what is left of a run when it has ended."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.build import BuiltModel
from tests.corpora import build_corpus
from tests.models import EFFICIENT_SAM, FUSION, SCRATCH
from trainer.build import assemble_model, open_split, training_tokenizer
from trainer.config import RunConfig, load_config
from trainer.engine.state_file import MODEL, OPTIMIZER, EngineState
from trainer.inference.answer import answer_photos
from trainer.inference.evaluate import evaluate_export
from trainer.reporting.overlays import Answered
from trainer.run_directory import RunDirectory

VISITS, QUESTIONS_PER_VISIT = 8, 3
STEPS_PER_EPOCH, EPOCHS = 5, 2
TOTAL_STEPS = STEPS_PER_EPOCH * EPOCHS

NO_COMPILER = {"CXX": "/nonexistent", "CC": "/nonexistent"}
"""Nothing may need a compiler: DeepSpeed would build an operator for its CPU collectives."""

_SCRATCH = SCRATCH | {"vision_layers": 1, "text_layers": 1}
_MEASURED = re.compile(r"time|speed/.*|memory/.*|.*_seconds")
"""Keys in metrics.jsonl whose values differ from one execution to the next."""


def write_shards(directory: Path) -> dict[str, str]:
    """Shards of two splits: a `data` section.

    24 training images with 1 to 5 questions give 33 visits, so that in the last of 5 steps a single lane of 8 is left.
    """
    train, _ = build_corpus(directory / "train", num_images=24, seed=0)
    val, _ = build_corpus(directory / "val", num_images=9, seed=1)
    return {"train": str(train), "val": str(val)}


def write_recipe(path: Path, data: Mapping[str, Any], **sections: Any) -> Path:
    """A recipe in which everything is trained from scratch, for 10 steps of 8 visits; its runs lie beside it.

    Args:
        data: `train` and `val`, from `write_shards`.
        sections: whole sections or single values in place of those below.
    """
    tree = {
        "run": {"directory": str(path.parent / "runs"), "seed": 3},
        "data": {
            **data,
            "questions_per_visit": QUESTIONS_PER_VISIT,
            "shuffle_shards": 2,
            "max_question_tokens": 24,
            "max_answer_tokens": 6,
            "workers": 0,
        },
        "model": {"scratch": _SCRATCH, "efficient_sam": EFFICIENT_SAM, "fusion": FUSION, "freeze": []},
        "batch": {"visits": VISITS, "micro_visits": 2},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "limits": {"epochs": EPOCHS},
        "logging": {"every_steps": 1, "tensorboard": False},
    }
    path.write_text(json.dumps(tree | sections))  # JSON is YAML
    return path


@dataclass(frozen=True)
class Project:
    """A recipe over shards, for tests that build its parts in their own process."""

    recipe: Path

    @classmethod
    def write(cls, directory: Path) -> "Project":
        return cls(write_recipe(directory / "tiny.yaml", write_shards(directory)))

    def config(self, *overrides: str) -> RunConfig:
        return load_config(self.recipe, overrides)

    def model(self, *overrides: str, seed: int = 3) -> BuiltModel:
        """The model of the recipe with the weights that a seed gives it."""
        config = self.config(f"run.seed={seed}", *overrides)
        train = open_split(config, "train")
        return assemble_model(config, scratch_tokenizer=lambda: training_tokenizer(config, train))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def engine_state(module: nn.Module, *, step: int = 1) -> EngineState:
    """What an engine that trains this module might save."""
    return EngineState(
        parameters=weights(module),
        moments={"exp_avg": weights(module), "exp_avg_sq": weights(module)},
        optimizer_step=step,
    )


class LeftOver:
    """The directory of a run, read as its user would."""

    def __init__(self, path: Path) -> None:
        self.path, self.directory = path, RunDirectory(path)

    @property
    def status(self) -> dict[str, Any]:
        return json.loads(self.directory.status.read_text())

    @property
    def records(self) -> list[dict[str, Any]]:
        """metrics.jsonl without the values that differ from one execution to the next."""
        lines = map(json.loads, self.directory.metrics.read_text().splitlines())
        return [{name: value for name, value in line.items() if not _MEASURED.fullmatch(name)} for line in lines]

    @property
    def losses(self) -> dict[int, dict[str, float]]:
        """The training losses of each step, part by part."""
        return {
            record["step"]: {name: value for name, value in record.items() if name.startswith("train/")}
            for record in self.records
            if "optim/lr" in record
        }

    @property
    def grad_norms(self) -> dict[int, float]:
        """The norm of the gradients of each step before they are clipped."""
        return {record["step"]: record["optim/grad_norm"] for record in self.records if "optim/grad_norm" in record}

    @property
    def validations(self) -> dict[int, dict[str, float]]:
        """The metrics of each validation, by step."""
        return {
            record["step"]: {name: value for name, value in record.items() if name.startswith("val/")}
            for record in self.records
            if "val/loss" in record
        }

    @property
    def predictions(self) -> bytes:
        return self.directory.predictions("val").read_bytes()

    @property
    def exported(self) -> dict[str, Any]:
        """export.json"""
        return json.loads((self.directory.export / "export.json").read_text())

    def checkpoint(self, pointer: str) -> Path:
        """The checkpoint that a pointer names."""
        return self.directory.checkpoints / (self.directory.checkpoints / pointer).read_text().strip()

    def progress(self, pointer: str) -> dict[str, Any]:
        """What the checkpoint says of how far the run was."""
        return json.loads((self.checkpoint(pointer) / "state.json").read_text())["progress"]

    def bits(self, pointer: str) -> list[bytes]:
        """Weights and moments of the checkpoint that a pointer names."""
        return [(self.checkpoint(pointer) / name).read_bytes() for name in (MODEL, OPTIMIZER)]


def evaluate_run(path: Path, split: str, **how: Any) -> tuple[dict[str, float], dict[str, int]]:
    """The metrics and counts that `evaluate_export` gives."""
    found = evaluate_export(path, split, **how)
    return found.metrics, found.counts


def answer_photo(run: Path, photo: Path, question: str, **how: Any) -> Answered:
    """What `answer_photos` gives of a single photo."""
    (found,) = answer_photos(run, [photo], question, **how)
    return found.answered
