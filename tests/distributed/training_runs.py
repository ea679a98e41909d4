"""The runs that the tests of training look at: their recipes, their faults, and two launches that train them all."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess

from shards.build.writer import build_shards
from tests.corpora import write_corpus
from tests.distributed.forked_ranks import fork_ranks
from tests.distributed.launch import launch_ranks
from tests.distributed.training_worker import Case, Fault, read_codes, write_cases
from tests.models import FUSION, tiny_checkpoints, tiny_t5
from tests.runs import NO_COMPILER, STEPS_PER_EPOCH, LeftOver, write_recipe
from tests.selection import STAGES
from trainer.run_directory import RunDirectory

WORKER = "tests.distributed.training_worker"
Start = Callable[..., CompletedProcess[str]]
"""`fork_ranks`, or `launch_ranks` where the launcher is part of what is tested."""
DROPOUT = ("model.fusion.dropout=0.1", "model.scratch.dropout=0.1")
LORA = {
    "blip": (
        *("model.lora.match.rank=2", "model.lora.match.targets=[query, value]"),
        *("model.lora.answer.rank=2", "model.lora.answer.targets=[crossattention.self.query]"),
    ),
    "t5": ("model.lora.answer.rank=2", "model.lora.answer.targets=[q, v]"),
}
"""Adapters on BLIP's matching tower and decoder, and on T5 in the place of BLIP's decoder."""
PICTURES = ("logging.tensorboard=true", "logging.pictures=2", "model.scratch.text_layers=2")
EARLY = ("early_stopping.metric=val/accuracy", "early_stopping.patience=2")

IN_SECOND_EPOCH = Fault(function="trainer.training.loop:train_step", call=8, signal="SIGKILL")
AT_FIRST_EXPORT = Fault(function="trainer.training.saving:export_model", call=1, signal="SIGKILL")
AT_FIRST_VALIDATION = Fault(function="model.fusion_objective:FusionObjective.evaluate", call=2, signal="SIGTERM")


@dataclass(frozen=True)
class Runs:
    """What a launch left behind."""

    directory: Path
    output: str
    codes: dict[str, list[int]]
    """Exit codes of each case by rank."""

    def __getitem__(self, name: str) -> LeftOver:
        return LeftOver(self.directory / "runs" / name)

    def said(self, case: str) -> str:
        """What the processes of a case wrote to the console."""
        return "".join(part for part in self.output.split("=== ") if part.startswith(f"{case}, rank "))


def train_alone(out: Path, data: dict[str, str]) -> Runs:
    """Runs of one process."""
    recipe, runs = write_recipe(out / "tiny.yaml", data), out / "runs"
    frozen, t5 = _frozen_recipe(out, runs / "zero1", data), tiny_t5(out / "t5", scale=1.0)
    killed = _case(recipe, "killed", *DROPOUT, "checkpoint.every_steps=3", fault=IN_SECOND_EPOCH)
    lora_dropout = (*_adapted("t5", t5), "model.lora.answer.dropout=0.2", "model.fusion.dropout=0.1")
    lora_killed = _case(frozen, "lora_killed", *lora_dropout, "checkpoint.every_steps=3", fault=IN_SECOND_EPOCH)
    exporting = _case(recipe, "exporting", *DROPOUT, fault=AT_FIRST_EXPORT)
    copied = [str(runs / "validating"), str(runs / "validated")]
    cases = [
        *(_case(recipe, f"zero{stage}", f"engine.policy=ds_configs/zero{stage}.json") for stage in STAGES),
        _case(frozen, "frozen"),
        *(_case(frozen, f"lora_{tower}", *_adapted(tower, t5)) for tower in LORA),
        _case(frozen, "lora_dropout", *lora_dropout),
        _case(_guided_recipe(out, data), "masks"),
        *(lora_killed, _again(lora_killed)),
        _case(recipe, "dropout", *DROPOUT),
        *(killed, _again(killed)),
        *(exporting, _again(exporting)),
        _case(recipe, "validating", *DROPOUT, fault=AT_FIRST_VALIDATION),
        _case(recipe, "validated", *DROPOUT, copy=copied),
        _case(recipe, "bf16", "precision=bf16"),
        _case(recipe, "early", *EARLY, "optim.lr=0.03", "limits.epochs=20"),
        _case(recipe, "without_val", "data.val=null"),
        _case(recipe, "initialized", f"initialize_from={runs / 'zero1'}", "optim.lr=1e-30", "limits.max_steps=1"),
        _case(recipe, "initialized_wrongly", f"initialize_from={runs / 'zero1'}", "model.fusion.layers=3"),
        _case(_recipe_without_negatives(out), "always_true"),
        _case(recipe, "diverged", "optim.lr=1e25", "limits.epochs=20"),
        _case(recipe, "nowhere", "run.directory=/dev/null/runs"),
        _case(recipe, "initialized_from_nothing", "initialize_from=gone"),
        _case(recipe, "occupied"),
    ]
    with _occupied(runs / "occupied"):
        return launched(out, cases, processes=1)


def train_together(out: Path, data: dict[str, str], alone: Runs, stages_with_adapters: Collection[int]) -> Runs:
    """Runs of two ranks; some go on from what the process alone has left."""
    recipe = write_recipe(out / "tiny.yaml", data)
    frozen, t5 = _frozen_recipe(out, alone["zero1"].path, data), tiny_t5(out / "t5", scale=1.0)
    on_rank_1 = replace(IN_SECOND_EPOCH, signal="SIGTERM", rank=1)
    stopped = _case(recipe, "stopped", *DROPOUT, "data.workers=1", fault=on_rank_1)
    validating = _case(recipe, "validating", fault=replace(AT_FIRST_VALIDATION, rank=1))
    elsewhere, other_stage = (
        [str(alone["validating"].path), str(out / "runs" / name)] for name in ("elsewhere", "other_stage")
    )
    cases = [
        *(_case(recipe, f"zero{stage}", f"engine.policy=ds_configs/zero{stage}.json") for stage in STAGES),
        _case(recipe, "auto", "engine.policy=auto"),
        *(_case(frozen, f"frozen{stage}", f"engine.policy=ds_configs/zero{stage}.json") for stage in (1, 3)),
        *(
            _case(frozen, f"lora_{tower}{stage}", *_adapted(tower, t5), f"engine.policy=ds_configs/zero{stage}.json")
            for tower in LORA
            for stage in stages_with_adapters
        ),
        _case(recipe, "dropout", *DROPOUT),
        *(stopped, _again(stopped)),
        *(validating, _again(validating)),
        _case(recipe, "elsewhere", *DROPOUT, f"limits.max_steps={STEPS_PER_EPOCH}", copy=elsewhere),
        _case(recipe, "one_lane", "batch.lanes=1"),
        _case(_guided_recipe(out, data), "masks3", "engine.policy=ds_configs/zero3.json"),
        _case(recipe, "pictures", *PICTURES, "engine.policy=ds_configs/zero3.json", "limits.epochs=1"),
        _case(recipe, "other_stage", *DROPOUT, "engine.policy=ds_configs/zero3.json", copy=other_stage),
        _case(recipe, "nowhere", "run.directory=/dev/null/runs"),
        _case(recipe, "occupied"),
    ]
    with _occupied(out / "runs" / "occupied"):
        return launched(out, cases, processes=2, start=launch_ranks)


@contextlib.contextmanager
def _occupied(path: Path) -> Iterator[None]:
    """A run directory in which another process trains."""
    directory = RunDirectory(path)
    directory.create()
    with directory.lock():
        yield


def _case(recipe: Path, name: str, *overrides: str, **more: object) -> Case:
    return Case(name=name, recipe=str(recipe), overrides=[f"run.name={name}", *overrides], **more)


def _again(case: Case) -> Case:
    """The same command once more, in another process and without the fault."""
    return replace(case, name=f"{case.name}_again", fault=None)


def launched(out: Path, cases: Sequence[Case], *, processes: int, start: Start = fork_ranks) -> Runs:
    """All cases one after the other in one launch; what is left of them below `out`."""
    write_cases(out, cases)
    done = start(WORKER, str(out), processes=processes, env=NO_COMPILER, timeout_seconds=600)
    assert done.returncode == 0, done.stdout[-3000:]
    return Runs(out, done.stdout, read_codes(out, processes))


def _frozen_recipe(out: Path, trained: Path, data: dict[str, str]) -> Path:
    """A new fusion encoder between the exported towers of another run, which are frozen."""
    export = trained / "export"
    model = {
        "vision": str(export / "blip_vqa"),
        "match": str(export / "blip_itm"),
        "answer": str(export / "blip_vqa"),
        "efficient_sam": {"variant": "custom", "checkpoint": str(export / "efficient_sam.safetensors")},
        "fusion": FUSION,
    }
    return write_recipe(out / "frozen.yaml", data, model=model)


def _guided_recipe(out: Path, data: dict[str, str]) -> Path:
    """A fusion encoder that runs once per question, over masks that the question's heatmap leads to."""
    checkpoints = tiny_checkpoints(out / "checkpoints")
    model = {
        "vision": checkpoints["itm"],
        "match": checkpoints["itm"],
        "answer": checkpoints["vqa"],
        "second_stream": "efficient_sam_masks",
        "efficient_sam": {"variant": "custom", "checkpoint": checkpoints["sam"]},
        "fusion": FUSION,
    }
    return write_recipe(out / "guided.yaml", data, model=model)


def _adapted(tower: str, t5: str) -> tuple[str, ...]:
    """Overrides for adapters on a frozen tower, whose layers are computed again in the backward pass."""
    answer = (f"model.answer={t5}",) if tower == "t5" else ()
    return (*LORA[tower], *answer, "model.gradient_checkpointing=true")


def _recipe_without_negatives(out: Path) -> Path:
    """Matching alone, over questions without GQA's types and groups: no other answer is known to be wrong."""
    corpus = write_corpus(out / "rows", num_images=8)
    rows = [
        {"image": next(corpus.images.glob(f"{record['imageId']}.*")).name, **record}
        for record in json.loads(corpus.questions.read_text()).values()
    ]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_shards(format="jsonl", questions=[out / "rows.jsonl"], images=corpus.images, out=out / "rows_shards")
    return write_recipe(
        out / "always_true.yaml",
        {"train": str(out / "rows_shards")},
        losses={"itm": 1.0, "answer": 0.0, "negatives": ["answer"]},
        early_stopping={"metric": "val/itm_accuracy"},
    )
