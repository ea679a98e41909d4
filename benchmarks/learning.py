"""Whether tasks are learnt: rendered scenes in each task's own format, from files to official scores.

`python -m benchmarks.learning [--tasks vqa,snli_ve,nlvr2,lxmert,six_things,mpdocvqa] [--seeds 1,2] [--json O]` renders
scenes, packs shards, trains the task's recipe from scratch and scores it on unseen scenes; at most 10 minutes a task
and seed on two cores, and 30 for six things. MP-DocVQA trains adapters, on a small vision-language model that learns
to read single pages first (benchmarks/page_reader.py), which counts as well. Beside an accuracy stands what shows that
it looked: the text alone, other images, and the same model before it was trained. Every stage is a command that a user
would type. The JSON is {task: {seed: {row: percent}}}.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LxmertConfig, LxmertModel

from benchmarks.commands import numbers, run_duoflow
from benchmarks.page_reader import write_page_reader
from model.towers.tokenizer import build_tokenizer
from shards.annotations import reader_of
from shards.format.index import read_index
from shards.format.records import Item
from shards.format.tar_reader import ShardReader
from shards.scenes.lxmert import NUM_REGIONS, WIDTH
from shards.vqa_text import soft_scores
from trainer.run_directory import write_json
from trainer.scoring.vqa import answer_accuracy

HOME = Path("learning")
UNTRAINED = ("limits.max_steps=1", "optim.lr=1.0e-12", "optim.warmup_steps=0", "early_stopping.patience=null")
LXMERT_SIZES = {
    "hidden_size": 96,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "l_layers": 1,
    "r_layers": 1,
    "x_layers": 2,
    "max_position_embeddings": 32,
    "visual_feat_dim": WIDTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}
"""1 / sqrt(96) is .1: with the usual .02 a narrow model starts almost silent."""
ROWS = {
    "accuracy": "accuracy",
    "anls": "ANLS",
    "consistency": "consistency",
    "oracle": "oracle",
    "page_accuracy": "page named",
    "long_hit@1": "page named, of 3 or more",
    "semantic/attr": "about one thing",
    "semantic/rel": "about relations",
}
"""Metric of the unseen split -> row of the table."""
Scores = dict[str, float]
"""Row of the table -> percent."""


@dataclass(frozen=True)
class Proof:
    """How a task is learnt here."""

    images: int
    """Scenes to render."""
    splits: Mapping[str, tuple[str, ...]]
    """Split of the recipe -> arguments of `shards build` that name its files, below the directory of scenes."""
    starts_from_vqa: bool = False
    """Whether vision and text come from a run that learnt to answer questions about scenes; it counts as well."""
    format: str | None = None
    """Of its files, where that is not the task's name."""
    reads_regions: bool = False
    """Whether its files hold what a detector saw, and the model is a small LXMERT that has learnt nothing yet."""
    reads_pages: bool = False
    """Whether adapters are trained, on a small vision-language model that has learnt to read pages aloud."""
    unseen: str = "testdev"
    """The split that is scored."""


def _vqa_files(name: str) -> tuple[str, ...]:
    questions, annotations = f"v2_OpenEnded_mscoco_{name}_questions.json", f"v2_mscoco_{name}_annotations.json"
    return "--questions", questions, "--annotations", annotations


def _lxmert_files(name: str) -> tuple[str, ...]:
    return "--questions", f"{name}.json", "--regions", f"{name}_obj{NUM_REGIONS}.tsv"


PROOFS = {
    "vqa": Proof(
        3000, {"train": _vqa_files("train2014"), "val": _vqa_files("val2014"), "testdev": _vqa_files("test2015")}
    ),
    "snli_ve": Proof(
        6000,
        {
            "train": ("--questions", "snli_ve_train.jsonl"),
            "val": ("--questions", "snli_ve_dev.jsonl"),
            "testdev": ("--questions", "snli_ve_test.jsonl"),
        },
        starts_from_vqa=True,
    ),
    "nlvr2": Proof(
        12000,
        {
            "train": ("--questions", "train.json"),
            "val": ("--questions", "dev.json"),
            "testdev": ("--questions", "test1.json"),
        },
        starts_from_vqa=True,
    ),
    "lxmert": Proof(
        3000,
        {"train": _lxmert_files("train"), "val": _lxmert_files("valid"), "testdev": _lxmert_files("test")},
        reads_regions=True,
    ),
    "six_things": Proof(
        27000,
        {split: ("--questions", f"{split}_questions.json") for split in ("train", "val", "testdev")},
        format="gqa",
    ),
    "mpdocvqa": Proof(
        6000,
        {split: ("--questions", f"{split}.json") for split in ("train", "val", "test")},
        reads_pages=True,
        unseen="test",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=_names, default=list(PROOFS), help=f"of {','.join(PROOFS)} (default: all)")
    parser.add_argument("--seeds", type=numbers, default=[1], help="of scenes and training (default: 1)")
    parser.add_argument("--json", type=Path, metavar="O", help="write the table to this file as well")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of the recipes'")
    options = parser.parse_args()
    table: dict[str, dict[str, Scores]] = {task: {} for task in options.tasks}
    for task in options.tasks:
        for seed in options.seeds:
            table[task][str(seed)] = Lesson(task, seed, options.overrides).learn()
            _show(table)
            if options.json is not None:
                write_json(options.json, table)
    return 0


class Lesson:
    """One task with one seed, from scenes to scores."""

    def __init__(self, task: str, seed: int, overrides: Iterable[str] = ()) -> None:
        self.task, self.seed, self.proof, self.overrides = task, seed, PROOFS[task], tuple(overrides)
        self.home = HOME / f"{task}_seed{seed}"
        self.started = time.monotonic()

    def learn(self) -> Scores:
        """Render, pack, train, evaluate."""
        self._prepare(self.task)
        name, before = f"scenes_{self.task}", list(self.overrides)
        if self.proof.starts_from_vqa:
            self._prepare("vqa")
            self._train("vqa", "losses.answer=0", "losses.classify=1")
            weights = self.home / "runs" / "scenes_vqa" / "export" / "blip_vqa"
            before += [f"model.vision={weights}", f"model.match={weights}"]
        if self.proof.reads_regions:
            weights = write_lxmert(self.home / "untrained", self._texts(), self.seed)
            before += [f"model.vision={weights}", f"model.match={weights}"]
        if self.proof.reads_pages:
            before.append(f"model.vlm={self._page_reader()}")
        self._train(self.task, *before)
        self._train(self.task, *before, *UNTRAINED, f"run.name={name}_untrained")
        rows = {"text only": self._text_only()}
        rows["untrained"] = self._evaluate(f"{name}_untrained")["accuracy"]
        rows["images shuffled"] = self._evaluate(name, "--images", "shuffled")["accuracy"]
        if self.task == "vqa":
            for row, by in (("label head", "classify"), ("ranked", "rank"), ("decoder", "generate")):
                rows[row] = self._evaluate(name, f"answers.by={by}")["accuracy"]
            rows["oracle of the label head"] = self._oracle(name)
        else:
            rows |= self._evaluate(name)
        print(f"[{self.task}, seed {self.seed}: {(time.monotonic() - self.started) / 60:.1f} minutes in all]")
        return rows

    def _prepare(self, task: str) -> None:
        proof, scenes = PROOFS[task], self.home / task / "scenes"
        self._run("scenes", str(scenes), "--task", task, "--images", str(proof.images), "--seed", str(self.seed))
        for split, named in proof.splits.items():
            files = [word if word.startswith("--") else str(scenes / word) for word in named]
            images = () if proof.reads_regions else ("--images", str(scenes / "images"))
            arguments = ["--format", proof.format or task, *files, *images, "--out", str(self._shards(task, split))]
            self._run("shards", "build", *arguments)

    def _shards(self, task: str, split: str) -> Path:
        return self.home / task / "shards" / split

    def _train(self, task: str, *overrides: str) -> None:
        run = [f"run.directory={self.home / 'runs'}", f"run.seed={self.seed}"]
        places = [f"data.{split}={self._shards(task, split)}" for split in PROOFS[task].splits]
        self._run("train", f"recipes/scenes_{task}.yaml", *run, *places, *overrides)

    def _evaluate(self, run: str, *options: str) -> Scores:
        """Accuracies on the unseen split in percent, from the exported files in a process of its own."""
        scores, split = self.home / "scores.json", self.proof.unseen
        self._run("evaluate", str(self.home / "runs" / run), "--split", split, "--json", str(scores), *options)
        metrics = json.loads(scores.read_text(encoding="utf-8"))["metrics"]
        return {row: 100 * metrics[f"{split}/{name}"] for name, row in ROWS.items() if f"{split}/{name}" in metrics}

    def _page_reader(self) -> Path:
        """That of this seed, if an earlier call has written it whole: it takes most of the time."""
        directory = self.home / "page_reader"
        if not (directory / "processor_config.json").is_file():
            write_page_reader(directory, seed=self.seed)
        print(f"[{self.task}, seed {self.seed}: {time.monotonic() - self.started:.0f} s]", flush=True)
        return directory

    def _text_only(self) -> float:
        """What a text is worth without its images, in percent: the best single answer to each text of the very split
        that is scored. No model that does not look can have more."""
        items = self._items(self.proof.unseen)
        worth: dict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            text, answers = self._worth(item)
            worth[text].update(answers)
        return 100 * sum(max(answers.values()) for answers in worth.values()) / len(items)

    def _worth(self, item: Item) -> tuple[str, Mapping[str, float]]:
        """The text of an item, and what each answer to it that somebody gave would score."""
        if self.task == "vqa":
            return item.question, {answer: answer_accuracy(answer, item.answers) for answer in set(item.answers)}
        if self.task == "lxmert":
            return item.question, item.label
        if self.task == "six_things":
            return item.question, {item.answer: 1.0}
        if self.task == "mpdocvqa":
            return item.question, dict.fromkeys(item.answers, 1.0)
        return item.statement, {item.label: 1.0}

    def _oracle(self, run: str) -> float:
        """What the best class for each question would score, in percent."""
        export = json.loads((self.home / "runs" / run / "export" / "export.json").read_text(encoding="utf-8"))
        classes, items = set(export["classes"]), self._items("testdev")
        best = (
            max(
                (answer_accuracy(name, item.answers) for name in soft_scores(item.answers) if name in classes),
                default=0.0,
            )
            for item in items
        )
        return 100 * sum(best) / len(items)

    def _texts(self) -> list[str]:
        return [text for item in self._items("train") for text in item.texts]

    def _items(self, split: str) -> list[Item]:
        shards = self._shards(self.task, split)
        index = read_index(shards)
        reader = ShardReader(shards, index, reader_of(index, shards).sample)
        return [item for sample in range(index.num_images) for item in reader.sample(sample).items]

    def _run(self, *arguments: str) -> None:
        """Run a `duoflow` command; the benchmark ends with its exit code if it fails."""
        code = run_duoflow(*arguments)
        print(f"[{self.task}, seed {self.seed}: {time.monotonic() - self.started:.0f} s]", flush=True)
        if code:
            raise SystemExit(code)


def write_lxmert(directory: Path, texts: Iterable[str], seed: int) -> Path:
    """A small LXMERT with random weights and a tokenizer of these texts, as `save_pretrained` writes them."""
    tokenizer = build_tokenizer(texts, vocab_size=300)
    torch.manual_seed(seed)
    LxmertModel(LxmertConfig(vocab_size=len(tokenizer), **LXMERT_SIZES)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _show(table: Mapping[str, Mapping[str, Scores]]) -> None:
    for task, seeds in table.items():
        names = dict.fromkeys(name for rows in seeds.values() for name in rows)
        print(f"\n{task:<28}" + "".join(f"{f'seed {seed}':>12}" for seed in seeds))
        for name in names:
            cells = (rows.get(name) for rows in seeds.values())
            print(f"{name:<28}" + "".join(f"{'-' if cell is None else f'{cell:.1f}':>12}" for cell in cells))


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in PROOFS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: expected some of {','.join(PROOFS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
