"""What most tests of the doctor begin with."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from tests.corpora import build_corpus
from tests.unit.trainer.doctor.recipe_files import ITM, VQA, write_checkpoint


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Path:
    """A recipe that can run: two splits, three checkpoints, EfficientSAM's encoder, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    train, val = (build_corpus(tmp_path / split, num_images=3)[0] for split in ("train", "val"))
    for name, architecture in (("itm", ITM), ("vqa", VQA)):
        write_checkpoint(tmp_path / name, architecture)
    save_file({"image_encoder.one": np.zeros(3)}, tmp_path / "sam.safetensors", {"embed_dim": "12"})
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"data: {{train: {train}, val: {val}, workers: 0}}\nbatch: {{visits: 8, micro_visits: 2}}\n"
        "model: {vision: ./itm, match: ./itm, answer: ./vqa, fusion: {heads: 4},\n"
        "  efficient_sam: {variant: custom, checkpoint: sam.safetensors}}\n"
    )
    return path
