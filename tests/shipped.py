"""The shipped recipes with small sizes in them, over drawn pictures, and small random checkpoints in directories that
are called as on the hub."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from model.efficient_sam.segmenter import Segmenter
from model.efficient_sam.weights import save_segmenter
from tests.backbones import write_backbone
from tests.corpora import write_corpus
from tests.models import EFFICIENT_SAM, FUSION, SCRATCH, SEGMENTER, tiny_captioner, tiny_checkpoints, tiny_t5
from tests.official import Official
from tests.pages import SPLITS
from trainer.config.schema import REPOSITORY

IMAGES = (24, 9, 9)
"""Pictures of the splits."""
SIZES: dict[str, Any] = {
    "data": {"image_size": 32, "max_question_tokens": 24, "max_answer_tokens": 6, "workers": 0},
    "model": {
        "efficient_sam": EFFICIENT_SAM | {"neck_width": 8, "checkpoint": "weights/efficient_sam_vits.safetensors"},
        "fusion": FUSION,
    },
    "batch": {"visits": 8, "micro_visits": 2},
    "optim": {"warmup_steps": 2},
    "limits": {"epochs": 2},
    "logging": {"every_steps": 1, "tensorboard": False},
}
"""What is small in a recipe here; all else is as it is shipped."""
FROM_SCRATCH = {
    "model": {"scratch": SCRATCH, "efficient_sam": EFFICIENT_SAM | {"checkpoint": None}},
    "engine": {"processes": 1},
}


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with other values in it, section by section."""
    inside = {
        key: merged(tree.get(key) or {}, value) if isinstance(value, Mapping) else value
        for key, value in changes.items()
    }
    return {**tree, **inside}


def shipped(name: str, **changes: Any) -> dict[str, Any]:
    """A recipe of the repository, small."""
    tree = yaml.safe_load((REPOSITORY / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    return merged(merged(tree, SIZES), changes)


def place_checkpoints(desk: Path) -> None:
    """What the recipes and the pages name, under these names."""
    made = tiny_checkpoints(desk / "made")
    (desk / "Salesforce").mkdir()
    shutil.copytree(made["itm"], desk / "Salesforce" / "blip-itm-base-coco")
    shutil.copytree(made["vqa"], desk / "Salesforce" / "blip-vqa-base")
    tiny_captioner(desk / "Salesforce" / "blip-image-captioning-base")
    tiny_t5(desk / "allenai" / "unifiedqa-v2-t5-base-1363200")
    (desk / "weights").mkdir()
    save_segmenter(Segmenter(SEGMENTER), desk / "weights" / "efficient_sam_vits.safetensors")
    for family, name in (
        ("dinov2", "vit_base_patch14_dinov2.lvd142m"),
        ("convnext", "convnext_base.dinov3_lvd1689m"),
        ("siglip", "vit_base_patch16_siglip_384.v2_webli"),
    ):
        write_backbone(desk / name, family)


def place_recipes(desk: Path) -> None:
    """The shipped ones under their names, and that of the placeholders."""
    (desk / "recipes").mkdir()
    for name in ("gqa_blip_base", "gqa_blip_lora", "gqa_t5_lora", "gqa_blip_dinov2"):
        (desk / "recipes" / f"{name}.yaml").write_text(json.dumps(shipped(name)))
    (desk / "recipes" / "easyvqa.yaml").write_text(json.dumps(shipped("easyvqa", **FROM_SCRATCH)))
    for name in ("R.yaml", "RECIPE"):
        (desk / name).write_text(json.dumps(shipped("gqa_blip_base")))


def write_desk(directory: Path) -> Path:
    """Shards, recipes and checkpoints under the names of the pages'."""
    place_checkpoints(directory)
    place_recipes(directory)
    for seed, (split, num_images) in enumerate(zip(SPLITS, IMAGES, strict=True)):
        corpus = write_corpus(directory / "corpora" / split, num_images=num_images, seed=seed)
        Official("gqa", corpus.images, (corpus.questions,)).build(directory / "data" / "gqa" / split)
    return directory
