"""The tiny recipe by the `duoflow` command, on scenes and generated weights: LoRA in both towers, answers from T5."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from benchmarks.tiny_weights import RECIPE, RECIPE_HOME, scene_texts, write_weights
from tests.runs import NO_COMPILER, LeftOver
from trainer.cli import main
from trainer.config.schema import REPOSITORY

pytestmark = pytest.mark.integration

STEPS = 3
OVERRIDES = (
    "engine.processes=1",
    "data.workers=0",
    "data.train=shards/train",
    "data.val=shards/val",
    "model.answer=./weights/tiny/t5",
    "model.lora.answer.rank=2",
    "model.lora.answer.targets=[q,v]",
    "model.lora.match.rank=2",
    "model.lora.match.targets=[query,value]",
    f"limits.max_steps={STEPS}",
    "logging.every_steps=1",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LeftOver:
    """What the recipe has left behind."""
    home = tmp_path_factory.mktemp("tiny")
    transformers_logging.disable_progress_bar()
    write_weights(home / RECIPE_HOME, list(scene_texts()), seed=0)
    assert main(["scenes", str(home / "scenes"), "--images", "48"]) == 0
    for split in ("train", "val"):
        where = ["--questions", str(home / "scenes" / f"{split}_balanced_questions.json")]
        where += ["--images", str(home / "scenes" / "images"), "--out", str(home / "shards" / split)]
        assert main(["shards", "build", "--format", "gqa", *where, "--workers", "1"]) == 0
    environment = {**os.environ, **NO_COMPILER, "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "trainer.cli", "train", str(REPOSITORY / RECIPE), *OVERRIDES]
    result = subprocess.run(command, cwd=home, env=environment, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return LeftOver(home / "runs" / Path(RECIPE).stem)


def test_it_trains_to_its_end_with_finite_losses(run: LeftOver):
    assert run.status["state"] == "done"
    assert sorted(run.losses) == list(range(1, STEPS + 1))
    values = [value for losses in run.losses.values() for value in losses.values()]
    assert all(0 < value < 100 for value in values)
    assert run.validations


def test_the_adapters_of_both_towers_are_exported_for_their_base_models(run: LeftOver):
    for part, base, targets in (("match", "blip_itm", ["query", "value"]), ("answer", "t5", ["q", "v"])):
        adapter = run.directory.export / f"lora_{part}"
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert sorted(config["target_modules"]) == targets
        assert Path(config["base_model_name_or_path"]).name == base
        assert (adapter / "adapter_model.safetensors").is_file()
