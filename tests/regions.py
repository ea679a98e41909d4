"""What a detector might have seen, and a small LXMERT that reads it: TSV rows and a checkpoint, both made by code."""

import atexit
import base64
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import LxmertConfig, LxmertForPreTraining

from model.towers.tokenizer import build_tokenizer
from shards.annotations.region_rows import COLUMNS
from shards.format.regions import Regions
from tests.corpora import COLORS

NUM_REGIONS, REGION_WIDTH = 4, 10
_TEXTS = (
    *(f"What color is the square? {color}" for color in COLORS),
    "Is the square red? On which side is it? How many squares are there? left right yes no 1 2 none",
    "Both squares are on the left. have one color. At least one is. The second",
)


def regions_of(*seen: int, size: tuple[int, int] = (40, 32), width: int = REGION_WIDTH, seed: int = 0) -> Regions:
    """Regions of these kinds of things: equal kinds look alike but for noise, and each stands somewhere."""
    rng, count = np.random.default_rng((seed, *seen)), len(seen)
    looks = np.stack([np.random.default_rng(kind).normal(size=width) for kind in seen])
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4) * np.tile(size, 2)
    return Regions(
        size=np.array(size, np.int64),
        boxes=corners.astype(np.float32),
        features=(looks + 0.1 * rng.normal(size=looks.shape)).astype(np.float32),
        objects_id=np.array(seen, np.int64),
        objects_conf=rng.uniform(size=count).astype(np.float32),
        attrs_id=np.array(seen, np.int64) % 3,
        attrs_conf=rng.uniform(size=count).astype(np.float32),
    )


def row_of(image_id: str, regions: Regions) -> dict[str, str]:
    """The columns of an image, as LXMERT's extractor writes them."""
    arrays = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features")
    row = {name: base64.b64encode(getattr(regions, name).tobytes()).decode() for name in arrays}
    width, height = regions.size.tolist()
    return {"img_id": image_id, "img_h": str(height), "img_w": str(width), "num_boxes": str(len(regions.boxes)), **row}


def write_tsv(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """A TSV without a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row[name] for name in COLUMNS) + "\n" for row in rows))
    return path


def tiny_config(**changes: object) -> LxmertConfig:
    """Sizes of a few ten thousand parameters, without dropout."""
    sizes = {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "l_layers": 1,
        "r_layers": 1,
        "x_layers": 2,
        "max_position_embeddings": 32,
        "visual_feat_dim": REGION_WIDTH,
        "num_qa_labels": 6,
        "num_object_labels": 5,
        "num_attr_labels": 4,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    return LxmertConfig(**{**sizes, **changes})


def tiny_lxmert(directory: Path, *, seed: int = 0, **changes: object) -> str:
    """A directory with an LXMERT as a hub would have it, with all heads, its tokenizer knowing the questions here."""
    tokenizer = build_tokenizer(_TEXTS, vocab_size=120)
    torch.manual_seed(seed)
    model = LxmertForPreTraining(tiny_config(vocab_size=len(tokenizer), **changes))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@cache
def shared_lxmert() -> str:
    """One of them, for all tests of a process."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return tiny_lxmert(Path(directory))
