"""A tiny recipe between two frozen encoders, and the caches that are written for it."""

from dataclasses import replace
from pathlib import Path

import torch

from model.efficient_sam.segmenter import Segmenter
from model.efficient_sam.weights import save_segmenter
from tests.models import FUSION, SEGMENTER, tiny_checkpoints
from tests.runs import write_recipe, write_shards
from trainer import cli


def write_project(directory: Path, **sections: object) -> Path:
    """A recipe whose second stream has a finer grid than its first: 8 x 8 cells, pooled to 4 x 4."""
    checkpoints = tiny_checkpoints(directory / "checkpoints")
    torch.manual_seed(5)
    finer = replace(SEGMENTER, encoder=replace(SEGMENTER.encoder, image_size=64))
    save_segmenter(Segmenter(finer), directory / "sam.safetensors")
    model = {
        "vision": checkpoints["itm"],
        "match": checkpoints["itm"],
        "answer": checkpoints["vqa"],
        "second_stream": "efficient_sam",
        "efficient_sam": {"variant": "custom", "checkpoint": str(directory / "sam.safetensors")},
        "fusion": FUSION,
    }
    return write_recipe(directory / "frozen.yaml", write_shards(directory), **{"model": model, **sections})


def cache(recipe: Path, split: str, *words: str) -> int:
    """The exit code of `features cache`."""
    return cli.main(["features", "cache", str(recipe), "--split", split, *words])
