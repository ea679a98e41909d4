"""Whether pages are found: drawn documents, from files to the ranking of unseen ones.

`python -m benchmarks.retrieval [--seeds 1,2] [--losses contrastive,triplet] [--images N] [--json O]` draws documents,
packs shards, trains recipes/drawn_retrieval.yaml from random weights and ranks the pages of unseen documents. Beside
it stand the same model before it was trained, and chance. Every stage is a command that a user would type. The JSON is
{loss: {seed: {row: percent}}}.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from benchmarks.commands import numbers, run_duoflow
from benchmarks.page_reader import CONTRAST, PAPER
from model.towers.tokenizer import build_tokenizer
from model.untrained import initialize_untrained, initialize_untrained_vision
from shards.annotations import reader_of
from shards.format.documents import DocumentQuestion
from shards.format.index import read_index
from shards.format.tar_reader import ShardReader
from trainer.run_directory import write_json
from trainer.scoring.anls import LONG

HOME = Path("learning")
RECIPE = "recipes/drawn_retrieval.yaml"
LOSSES = ("contrastive", "triplet")
SIDE, PATCH = 72, 12
"""A drawn page at half of its size, and two letters of a line."""
WIDTH, SPACE = 192, 64
ROWS = ("hit@1", "hit@3", "long_hit@1")
Scores = dict[str, float]
"""Row of the table -> percent."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=numbers, default=[1], help="of documents and training (default: 1)")
    parser.add_argument("--losses", type=lambda text: text.split(","), default=list(LOSSES), help="default: both")
    parser.add_argument("--images", type=int, default=6000, help="pages to draw (default: 6000)")
    parser.add_argument("--json", type=Path, metavar="O", help="write the table to this file as well")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of the recipe's")
    options = parser.parse_args()
    table: dict[str, dict[str, Scores]] = {loss: {} for loss in options.losses}
    for seed in options.seeds:
        home = HOME / f"retrieval_seed{seed}"
        prepare(home, seed, options.images)
        for loss in options.losses:
            table[loss][str(seed)] = learn(home, seed, loss, options.overrides)
            if options.json is not None:
                write_json(options.json, table)
    show(table)
    return 0


def prepare(home: Path, seed: int, images: int) -> None:
    """Documents, their shards, and a model that has learnt nothing."""
    scenes = home / "scenes"
    _run("scenes", str(scenes), "--task", "mpdocvqa", "--images", str(images), "--seed", str(seed))
    for split in ("train", "val", "test"):
        files = ["--questions", str(scenes / f"{split}.json"), "--images", str(scenes / "images")]
        _run("shards", "build", "--format", "mpdocvqa", *files, "--out", str(home / "shards" / split))
    write_clip(home / "untrained", [question.question for question in questions(home / "shards" / "train")], seed)


def learn(home: Path, seed: int, loss: str, overrides: Sequence[str]) -> Scores:
    """Train and rank."""
    started, name = time.monotonic(), f"drawn_retrieval_{loss}"
    places = [f"data.{key}={home / 'shards' / split}" for key, split in SPLITS.items()]
    own = [f"run.directory={home / 'runs'}", f"run.name={name}", f"run.seed={seed}", f"retrieval.loss={loss}"]
    _run("train", RECIPE, *own, *places, f"model.retrieval={home / 'untrained'}", *overrides)
    print(f"[{loss}, seed {seed}: {time.monotonic() - started:.0f} s of training]", flush=True)
    run, unseen = home / "runs" / name, questions(home / "shards" / "test")
    rows = {"chance of hit@1": _percent([1 / len(question.pages) for question in unseen])}
    long = [1 / len(question.pages) for question in unseen if len(question.pages) >= LONG]
    rows["chance of long_hit@1"] = _percent(long)
    rows |= {f"untrained {row}": value for row, value in _evaluate(run, "--weights", "initial").items()}
    return rows | _evaluate(run)


SPLITS = {"train": "train", "val": "val", "testdev": "test"}
"""Split of the recipe -> that of the files."""


def questions(shards: Path) -> list[DocumentQuestion]:
    """All questions of a split."""
    index = read_index(shards)
    reader = ShardReader(shards, index, reader_of(index, shards).sample)
    return [item for sample in range(index.num_images) for item in reader.sample(sample).items]


def write_clip(directory: Path, texts: Sequence[str], seed: int) -> None:
    """A small CLIP with random weights, a tokenizer of the words of these texts and an image processor."""
    tokenizer = build_tokenizer(texts, vocab_size=300)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2}
    ends = {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = sizes | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = sizes | {"image_size": SIDE, "patch_size": PATCH}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=SPACE))
    start_loud(model)
    model.save_pretrained(directory)
    size = {"height": SIDE, "width": SIDE}
    # Paper is 0: what all pages have in common would be most of a patch's embedding.
    images = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=size, image_mean=[PAPER] * 3, image_std=[CONTRAST] * 3
    )
    CLIPProcessor(images, tokenizer).save_pretrained(directory)


@torch.no_grad()
def start_loud(model: CLIPModel) -> None:
    """Starting weights with which questions differ from each other, and pages do, from the first step on
    (docs/from_scratch.md)."""
    initialize_untrained(model)
    words, seen = model.text_model.embeddings, model.vision_model.embeddings
    nn.init.normal_(words.token_embedding.weight)
    outputs = [
        linear for layer in model.vision_model.encoder.layers for linear in (layer.self_attn.out_proj, layer.mlp.fc2)
    ]
    initialize_untrained_vision(seen.patch_embedding, seen.position_embedding.weight[None], outputs)


def show(table: Mapping[str, Mapping[str, Scores]]) -> None:
    """A row for each measure, a column for each loss and seed."""
    columns = {f"{loss} {seed}": rows for loss, seeds in table.items() for seed, rows in seeds.items()}
    print(f"\n{'':<24}" + "".join(f"{name:>16}" for name in columns))
    for name in dict.fromkeys(name for rows in columns.values() for name in rows):
        print(f"{name:<24}" + "".join(f"{rows[name]:>16.1f}" for rows in columns.values()))


def _evaluate(run: Path, *options: str) -> Scores:
    scores = run.parent / "scores.json"
    _run("evaluate", str(run), "--split", "testdev", "--json", str(scores), *options)
    metrics = json.loads(scores.read_text(encoding="utf-8"))["metrics"]
    return {row: 100 * metrics[f"testdev/{row}"] for row in ROWS}


def _percent(parts: Sequence[float]) -> float:
    return 100 * sum(parts) / len(parts)


def _run(*arguments: str) -> None:
    """Run a `duoflow` command; the benchmark ends with its exit code if it fails."""
    if code := run_duoflow(*arguments):
        raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(main())
