"""The files that a recipe names, and what the doctor says of a recipe."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from trainer.config import RunConfig, load_config
from trainer.doctor.recipe import recipe_rows
from trainer.doctor.table import Row

ITM, VQA = "BlipForImageTextRetrieval", "BlipForQuestionAnswering"
T5 = "T5ForConditionalGeneration"


def write_checkpoint(directory: Path, architecture: str, *, width: int = 48) -> Path:
    """The files of a checkpoint, with weights that no model would take."""
    directory.mkdir(parents=True)
    sizes = {"model_type": "t5", "d_model": width} if architecture == T5 else {"vision_config": {"hidden_size": width}}
    config = {"architectures": [architecture], "model_type": "blip", **sizes}
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"one": np.zeros(3, np.float32)}, directory / "model.safetensors")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def loaded(recipe: Path, *overrides: str) -> RunConfig:
    return load_config(recipe, overrides)


def rows_of(config: RunConfig) -> dict[str, Row]:
    return {row.name: row for row in recipe_rows(config)}
