"""The whole job on scenes that are rendered here: `make demo`.

Renders scenes, packs shards, trains small vision encoders on one part of them, freezes these, trains the fusion encoder
on the other part, and evaluates the exports in new processes. Every stage is a command that a user would type; it is
printed before it runs. Ends with a table, and the same as demo/results.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.commands import run_duoflow
from shards.format.index import read_index
from shards.format.records import Question
from shards.format.tar_reader import ShardReader
from trainer.scoring.baselines import question_only_accuracy

HOME = Path("demo")
"""Where the recipes look for shards and encoders; another seed has a directory of its own below it."""
DEFAULT_SEED = 1
SPLITS = ("backbone", "train", "val", "testdev")

BUDGET_SECONDS = {"scenes": 15, "shards": 20, "backbone": 430, "fusion": 65, "single stream": 60, "evaluation": 60}
"""What each stage takes at most on two CPU cores that have little else to do; idle ones take under 10 minutes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of scenes and training (default: %(default)s)")
    parser.add_argument("--images", type=int, default=6000, help="scenes to render (default: %(default)s)")
    options = parser.parse_args()
    demo = Demo(options.seed, options.images)
    demo.prepare()
    demo.train()
    rows = demo.evaluate()
    demo.show(rows)
    return 0


class Demo:
    """The stages, in order; each prints what it runs, and what it took of its budget."""

    def __init__(self, seed: int, num_images: int) -> None:
        self.seed, self.num_images = seed, num_images
        self.home = HOME if seed == DEFAULT_SEED else HOME / f"seed{seed}"
        self.fusion, self.single = self.home / "runs" / "demo_fusion", self.home / "runs" / "demo_single_stream"
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Render the scenes and pack a split of shards for each part of them."""
        scenes = self.home / "scenes"
        self._stage("scenes", ["scenes", str(scenes), "--images", str(self.num_images), "--seed", str(self.seed)])
        for split in SPLITS:
            questions, graphs = scenes / f"{split}_balanced_questions.json", scenes / f"{split}_sceneGraphs.json"
            arguments = ["--format", "gqa", "--questions", str(questions), "--scene-graphs", str(graphs)]
            arguments += ["--images", str(scenes / "images"), "--out", str(self.home / "shards" / split)]
            self._stage("shards", ["shards", "build", *arguments])

    def train(self) -> None:
        """Train encoders from scratch, then the fusion between them, then the same with the first stream alone."""
        backbone, fusion = self._overrides("backbone"), [*self._overrides("train"), *self._encoders()]
        self._stage("backbone", ["train", "recipes/demo_backbone.yaml", *backbone])
        self._stage("fusion", ["train", "recipes/demo_fusion.yaml", *fusion])
        single = ["run.name=demo_single_stream", "model.second_stream=none"]
        self._stage("single stream", ["train", "recipes/demo_fusion.yaml", *fusion, *single])

    def evaluate(self) -> list[tuple[str, float]]:
        """Testdev accuracies in percent, each from the exported files in a process of its own."""
        train, testdev = (read_questions(self.home / "shards" / split) for split in ("train", "testdev"))
        return [
            ("question only", question_only_accuracy(train, testdev).percent),
            ("single stream", self._accuracy(self.single)),
            ("fusion at initialisation", self._accuracy(self.fusion, "--weights", "initial")),
            ("fusion trained", self._accuracy(self.fusion)),
            ("fusion trained, images shuffled", self._accuracy(self.fusion, "--images", "shuffled")),
        ]

    def show(self, rows: list[tuple[str, float]]) -> None:
        """Print the tables, and write them to demo/results.json."""
        total = time.monotonic() - self.started
        print(f"\n{'stage':<34}{'seconds':>8}{'budget':>8}")
        for stage, budget in BUDGET_SECONDS.items():
            print(f"{stage:<34}{self.seconds[stage]:>8.0f}{budget:>8}")
        print(f"{'all':<34}{total:>8.0f}{sum(BUDGET_SECONDS.values()):>8}")
        print(f"\n{'testdev':<34}accuracy")
        for name, percent in rows:
            print(f"{name:<34}{percent:>6.1f} %")
        result = {"seed": self.seed, "accuracy": dict(rows), "seconds": {**self.seconds, "all": total}}
        (self.home / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(
            f"\nWhere to look next:\n"
            f"  tensorboard --logdir {self.home / 'runs'}     losses, accuracies per question type, speed\n"
            f"  {self.fusion / 'export'}/       the trained fusion encoder, with its model card\n"
            f"  {self.fusion / 'predictions' / 'testdev.json'}   answers in GQA's submission format\n"
            f"  recipes/demo_fusion.yaml     the recipe: change a line, or add key=value to the command\n"
            f"  docs/data.md                 the same with your own images and questions"
        )

    def _overrides(self, train: str) -> list[str]:
        """What differs from the recipe for another seed than the recipe's."""
        if self.home == HOME:
            return []
        shards = self.home / "shards"
        data = {"train": shards / train, "val": shards / "val", "testdev": shards / "testdev"}
        paths = [f"data.{split}={path}" for split, path in data.items()]
        return [f"run.seed={self.seed}", f"run.directory={self.home / 'runs'}", *paths]

    def _encoders(self) -> list[str]:
        """Where the encoders of the first run lie, if that is not where the recipe looks."""
        if self.home == HOME:
            return []
        export = self.home / "runs" / "demo_backbone" / "export"
        parts = {"vision": "blip_vqa", "match": "blip_itm", "answer": "blip_vqa"}
        references = [f"model.{part}={export / name}" for part, name in parts.items()]
        return [*references, f"model.efficient_sam.checkpoint={export / 'efficient_sam.safetensors'}"]

    def _accuracy(self, run: Path, *options: str) -> float:
        scores = self.home / "scores.json"
        self._stage(
            "evaluation", ["evaluate", str(run), "--split", "testdev", "--json", str(scores), *options], quiet=True
        )
        return 100.0 * json.loads(scores.read_text(encoding="utf-8"))["metrics"]["testdev/accuracy"]

    def _stage(self, name: str, arguments: list[str], *, quiet: bool = False) -> None:
        """Run a `duoflow` command; the demo ends with its exit code if it fails."""
        started = time.monotonic()
        code = run_duoflow(*arguments, quiet=quiet)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        print(f"[{name}: {self.seconds[name]:.0f} of {BUDGET_SECONDS[name]} s]", flush=True)
        if code:
            raise SystemExit(code)


def read_questions(shards: Path) -> list[Question]:
    """Every question of a split of shards."""
    index = read_index(shards)
    reader = ShardReader(shards, index)
    return [question for image in range(index.num_images) for question in reader.sample(image).questions]


if __name__ == "__main__":
    sys.exit(main())
