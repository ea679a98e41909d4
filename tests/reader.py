"""A small T5 that spells words as bytes, and documents with what an OCR read on their pages."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from shards.build.writer import build_shards
from tests.corpora import SMALL_SHARD
from tests.documents import imdb_records, write_imdb, write_mpdocvqa
from tests.runs import write_recipe
from tests.vlm import byte_tokenizer

SECTIONS: dict[str, Any] = {
    "model": {"reader": "hi_vt5", "freeze": []},
    "reader": {"page_tokens": 3, "max_pages": 12, "max_page_tokens": 80},
    "early_stopping": {"metric": "val/anls"},
}
"""What a recipe over them says, but for the T5."""


@cache
def shared_t5(*, dropout: float = 0.0) -> str:
    """The directory of a T5 as a hub would have it, for all tests of a process."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return write_t5(Path(directory), dropout=dropout)


def write_t5(directory: Path, *, dropout: float = 0.0) -> str:
    """A T5 with two rows without a token, as published ones have some."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer) + 2,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        dropout_rate=dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(directory)
    return str(directory)


def write_documents(directory: Path, *, with_words: bool = True) -> dict[str, str]:
    """Shards of two splits: a `data` section."""
    data = {}
    for seed, (split, number) in enumerate((("train", 10), ("val", 5))):
        home = directory / split
        files = write_mpdocvqa(home / "files", num_samples=number, seed=seed)
        ocr = [write_imdb(home / "imdb.npy", imdb_records(files))] if with_words else []
        out = home / "shards"
        read = {"questions": files.questions, "images": files.images, "ocr": ocr}
        build_shards(format=files.format, out=out, shard_bytes=SMALL_SHARD, **read)
        data[split] = str(out)
    return data


def reader_recipe(path: Path, data: dict[str, str], **sections: Any) -> Path:
    """A recipe that trains the whole T5 on documents: see `write_recipe`."""
    model = SECTIONS["model"] | {"answer": shared_t5()} | sections.pop("model", {})
    return write_recipe(path, data, task="mpdocvqa", **SECTIONS | {"model": model} | sections)
