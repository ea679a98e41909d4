"""What cached tokens change: the losses and accuracies of runs over images, over fp16 tokens and over int8 ones.

    python -m benchmarks.features [--json F]                                        200 steps, generated encoders
    python -m benchmarks.features --recipe recipes/demo_fusion.yaml --seeds 1,2,3   a whole recipe, after `make demo`

Without a recipe it renders scenes and generates weights for recipes/gqa_blip_tiny.yaml. Order, dropout and negatives
are those of the seed in all three runs, so that what differs is the rounding of the tokens.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import numbers, run_duoflow
from benchmarks.tiny_weights import RECIPE, scene_texts, write_weights
from trainer.reporting.environment import collect_environment
from trainer.run_directory import write_json

IMAGES, STEPS = 240, 200
KINDS = ("images", "fp16", "int8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", metavar="F", type=Path, help="a recipe whose shards and encoders are there")
    parser.add_argument("--seeds", metavar="N,N", type=numbers, default=[1], help="(default: 1)")
    parser.add_argument("--json", metavar="F", type=Path, help="write the figures to a file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="features.") as home:
        recipe, overrides = (options.recipe, []) if options.recipe else (Path(RECIPE), small(Path(home)))
        for kind in KINDS[1:]:
            for split in ("train", "val"):
                out = ["--split", split, "--dtype", kind, "--out", str(Path(home) / kind)]
                _run("features", "cache", str(recipe), *overrides, *out)
        found = {
            seed: {kind: _train(Path(home), recipe, overrides, seed, kind) for kind in KINDS} for seed in options.seeds
        }
    print(f"\n{'seed':>6}{'tokens':>8}{'largest':>10}{'median':>10}{'accuracy':>10}   relative differences of the loss")
    table = [_row(seed, kind, runs) for seed, runs in found.items() for kind in KINDS]
    for row in table:
        print(
            f"{row['seed']:>6}{row['tokens']:>8}{row['largest']:>10.1e}{row['median']:>10.1e}{row['accuracy']:>10.4f}"
        )
    if options.json is not None:
        made_with = collect_environment(hosts=[], devices=["cpu"])
        write_json(options.json, {"made_with": made_with, "recipe": str(recipe), "table": table, "runs": found})
    return 0


def small(home: Path) -> list[str]:
    """Scenes, shards and weights for the recipe of generated weights; what it has to be told of them."""
    scenes, weights = home / "scenes", home / "weights"
    _run("scenes", str(scenes), "--images", str(IMAGES), "--seed", "1")
    for split in ("train", "val"):
        questions = str(scenes / f"{split}_balanced_questions.json")
        out = ["--images", str(scenes / "images"), "--out", str(home / "shards" / split)]
        _run("shards", "build", "--format", "gqa", "--questions", questions, *out)
    write_weights(weights, list(scene_texts()), seed=1)
    return [
        *(f"data.{split}={home / 'shards' / split}" for split in ("train", "val")),
        *(f"model.{part}={weights / name}" for part, name in (("vision", "blip_itm"), ("match", "blip_itm"))),
        *(f"model.{part}={weights / 'blip_vqa'}" for part in ("answer", "second_vision")),
        f"model.efficient_sam.checkpoint={weights / 'efficient_sam.safetensors'}",
        *("engine.processes=1", f"limits.max_steps={STEPS}", "limits.epochs=1000", "validate_every.max_images=null"),
    ]


def _train(home: Path, recipe: Path, overrides: Sequence[str], seed: int, kind: str) -> dict[str, Any]:
    """The loss of every step, and the best accuracy on val."""
    reads = ["data.features=off"]
    if kind != "images":
        reads = ["data.features=require", f"data.features_directory={home / kind}"]
    run = [f"run.name={kind}{seed}", f"run.seed={seed}", f"run.directory={home / 'runs'}"]
    _run("train", str(recipe), *overrides, *run, *reads, "logging.every_steps=1", "logging.tensorboard=false")
    records = [
        json.loads(line) for line in (home / "runs" / f"{kind}{seed}" / "metrics.jsonl").read_text().splitlines()
    ]
    return {
        "losses": [record["train/loss"] for record in records if "optim/lr" in record],
        "accuracy": max(record["val/accuracy"] for record in records if "val/accuracy" in record),
    }


def _row(seed: int, kind: str, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pairs = zip(runs["images"]["losses"], runs[kind]["losses"], strict=False)  # early stopping may part them
    apart = [abs(found - expected) / abs(expected) for expected, found in pairs]
    figures = {"largest": max(apart), "median": median(apart), "accuracy": runs[kind]["accuracy"]}
    return {"seed": seed, "tokens": kind, "steps": len(apart), **figures}


def _run(*arguments: str) -> None:
    if run_duoflow(*arguments, quiet=True) != 0:
        sys.exit(f"duoflow {arguments[0]} failed")


if __name__ == "__main__":
    sys.exit(main())
