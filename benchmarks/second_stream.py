"""Does a second stream help? Two frozen encoders, each alone and together, on questions that need one or both.

`python -m benchmarks.second_stream [--seeds 1,2,3] [--json O] [--plot P.png]` renders pictures of which a coarse
encoder tells the colors and a fine, color-blind one the shapes (`shards/scenes/color_and_detail.py`), trains both
encoders, freezes them, and trains text encoder and decoder over each alone, over their sum, over both side by side and
over DIFNet, all with the same layers and width.

`python -m benchmarks.second_stream --recipe R.yaml --a REFERENCE --b REFERENCE` asks the same of two encoders of your
own on the recipe's shards: `timm:NAME.TAG`, a checkpoint of BLIP, or `efficient_sam` for the recipe's EfficientSAM.
Without `--recipe` it asks it on the pictures of this benchmark, where `efficient_sam` is its encoder of outlines.

Every stage is a command that a user would type. The JSON is {seed: {row: {column: percent}}}.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.bars import draw_bars
from benchmarks.commands import numbers, run_duoflow
from benchmarks.outlines import train_outlines
from model.references import EFFICIENT_SAM, read_reference
from shards.scenes.color_and_detail import BOTH, COLOR, DETAIL, GROUND
from trainer.run_directory import write_json

HOME = Path("second_stream")
OWN_RECIPE = "recipes/second_stream.yaml"
IMAGES = 6000
NEEDS = {"color": f"semantic/{COLOR}", "shape": f"semantic/{DETAIL}", "both": f"semantic/{BOTH}", "all": "accuracy"}
"""Column of the table -> metric, for the questions of the rendered pictures."""
Table = dict[str, dict[str, float]]
"""Row -> column -> percent."""


class Pair(NamedTuple):
    """Two encoders and the recipe that trains something between them."""

    recipe: str
    first: str
    second: str
    overrides: tuple[str, ...]
    """Of every run."""

    def rows(self) -> dict[str, list[str]]:
        """Row of the table -> what the recipe is changed to. All have the fusion's width and as many layers."""
        both = [f"model.vision={self.first}", *_as_second(self.second)]
        return {
            "first alone": [f"model.vision={self.first}", "model.second_stream=none"],
            "second alone": [f"model.vision={self.second}", "model.second_stream=none"],
            "sum": [*both, "model.fusion.separate_layers=0"],
            "concatenation": [*both, "model.fusion.name=concatenation"],
            "difnet": both,
        }


def _as_second(reference: str) -> list[str]:
    if reference == EFFICIENT_SAM:
        return ["model.second_stream=efficient_sam"]
    kind = "timm" if read_reference(reference).is_timm else "blip"
    return [f"model.second_stream={kind}", f"model.second_vision={reference}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=numbers, default=[1], help="of pictures, encoders and training (default: 1)")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="only these rows of the table")
    parser.add_argument("--json", type=Path, metavar="O", help="write the table to this file as well")
    parser.add_argument("--plot", type=Path, metavar="P", help="draw the table as a PNG")
    parser.add_argument("--recipe", default=OWN_RECIPE, help="trains something between --a and --b on your shards")
    parser.add_argument("--a", metavar="REFERENCE", help="the first encoder; none trains the two of this benchmark")
    parser.add_argument("--b", metavar="REFERENCE", help="the second encoder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of the recipe's")
    options = parser.parse_args()
    if (options.a is None) != (options.b is None) or (options.a is None and options.recipe != OWN_RECIPE):
        parser.error("--recipe, --a and --b go together")
    tables: dict[str, Table] = {}
    for seed in options.seeds:
        home = HOME / f"seed{seed}"
        pair = _pair(options, home, seed)
        pair = pair._replace(
            overrides=(*pair.overrides, f"run.seed={seed}", f"run.directory={home / 'runs'}", *options.overrides)
        )
        columns = NEEDS if options.recipe == OWN_RECIPE else None
        tables[str(seed)] = _measure(pair, home, options.rows, columns)
        _show(tables)
        if options.json is not None:
            write_json(options.json, tables)
        if options.plot is not None:
            draw_bars(options.plot, _means(tables))
    return 0


def _pair(options: argparse.Namespace, home: Path, seed: int) -> Pair:
    """Those that were named, over the recipe's shards or over this benchmark's; or this benchmark's own two."""
    if options.recipe != OWN_RECIPE:
        return Pair(options.recipe, options.a, options.b, ())
    overrides = _own_shards(home, seed)
    first = _own_first(home, seed) if options.a is None else options.a
    second = EFFICIENT_SAM if options.b is None else options.b
    if EFFICIENT_SAM in (first, second):
        overrides += (f"model.efficient_sam.checkpoint={_own_outlines(home, seed)}",)
    return Pair(OWN_RECIPE, first, second, overrides)


def _own_shards(home: Path, seed: int) -> tuple[str, ...]:
    """Render and pack; where the recipe finds them."""
    scenes, shards = home / "scenes", home / "shards"
    _run("scenes", str(scenes), "--task", "color_and_detail", "--images", str(IMAGES), "--seed", str(seed))
    for split in ("first", "train", "val", "testdev"):
        questions = ["--questions", str(scenes / f"{split}_questions.json"), "--images", str(scenes / "images")]
        _run("shards", "build", "--format", "gqa", *questions, "--out", str(shards / split))
    return tuple(f"data.{split}={shards / split}" for split in ("train", "val", "testdev"))


def _own_first(home: Path, seed: int) -> str:
    """Train the encoder that knows colors and names."""
    data = [f"data.{key}={home / 'shards' / split}" for key, split in (("train", "first"), ("val", "val"))]
    runs = [f"run.seed={seed}", f"run.directory={home / 'runs'}"]
    _run("train", "recipes/second_stream_first.yaml", *runs, *data)
    return str(home / "runs" / "second_stream_first" / "export" / "blip_vqa")


def _own_outlines(home: Path, seed: int) -> Path:
    """Train the encoder that knows outlines."""
    outlines = home / "outlines.safetensors"
    if outlines.is_file():  # trained anew it would have other last bits, and runs over it would be refused
        print(f"outlines: {outlines} is there")
        return outlines
    started = time.monotonic()
    right = train_outlines(home / "shards" / "first", GROUND, seed, outlines)
    print(f"outlines: {100 * right:.1f} % of pixels told right, {time.monotonic() - started:.0f} s: {outlines}")
    return outlines


def _measure(pair: Pair, home: Path, only: list[str] | None, columns: Mapping[str, str] | None) -> Table:
    """Train and evaluate every row."""
    table: Table = {}
    for row, changes in pair.rows().items():
        if only is not None and row not in only:
            continue
        name = "_".join(("second_stream", *row.split()))
        _run("train", pair.recipe, *pair.overrides, *changes, f"run.name={name}")
        scores = home / "scores.json"
        _run("evaluate", str(home / "runs" / name), "--split", "testdev", "--json", str(scores))
        metrics = json.loads(scores.read_text(encoding="utf-8"))["metrics"]
        found = columns or {key.removeprefix("testdev/"): key.removeprefix("testdev/") for key in metrics}
        table[row] = {
            column: 100 * metrics[f"testdev/{metric}"]
            for column, metric in found.items()
            if f"testdev/{metric}" in metrics and not metric.endswith("loss")
        }
    return table


def _means(tables: Mapping[str, Table]) -> Table:
    """Over the seeds."""
    rows = next(iter(tables.values()))
    return {
        row: {column: sum(table[row][column] for table in tables.values()) / len(tables) for column in columns}
        for row, columns in rows.items()
    }


def _show(tables: Mapping[str, Table]) -> None:
    shown = {f"seed {seed}": table for seed, table in tables.items()}
    if len(tables) > 1:
        shown["mean of the seeds"] = _means(tables)
    for title, table in shown.items():
        columns = next(iter(table.values()))
        print(f"\n{title:<24}" + "".join(f"{column:>10}" for column in columns))
        for row, percents in table.items():
            print(f"{row:<24}" + "".join(f"{percents[column]:>10.1f}" for column in columns))


def _run(*arguments: str) -> None:
    """Run a `duoflow` command; the benchmark ends with its exit code if it fails."""
    started = time.monotonic()
    code = run_duoflow(*arguments)
    print(f"[{time.monotonic() - started:.0f} s]", flush=True)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(main())
