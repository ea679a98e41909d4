"""Digests of training: eight kinds of model for a few steps in this process, and a run by the trainer from end to end.

Everything lies below the working directory and is named by relative paths, so that no digest depends on where that is.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.identity_data import ABSENT, SHARDS, Codecs, Line, tensors_digest, text_digest
from model.build import BuiltModel
from model.config import LossConfig
from model.objective import Objective
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import training_keys
from tests.models import EFFICIENT_SAM, FUSION, SCRATCH, tiny_checkpoints, tiny_t5
from tests.runs import NO_COMPILER, LeftOver, weights, write_recipe
from trainer.build import assemble_model, evaluation_loader, open_split, training_loader, training_tokenizer
from trainer.config import RunConfig, load_config
from trainer.config.checks import recorded_metrics
from trainer.config.schema import REPOSITORY
from trainer.engine.distributed import World
from trainer.engine.state_file import MODEL, OPTIMIZER
from trainer.export.write import export_model
from trainer.tasks import task_named
from trainer.training.validate import evaluate, gather_predictions

STEPS, ACCUMULATION, VISITS = 12, 2, 8
LEARNING_RATE = 1e-4
RUN_EPOCHS = 12
"""Enough for right answers: metrics that are 0 would hide a difference."""
SHIFT = 0.6
"""Standard deviation of what is added to every trained weight, so that questions get different answers."""
DATA = {"train": str(SHARDS / "train"), "val": str(SHARDS / "val")}
MODEL_SECTION = {
    "scratch": SCRATCH | {"dropout": 0.1},
    "efficient_sam": EFFICIENT_SAM,
    "fusion": FUSION | {"dropout": 0.1},
    "freeze": [],
}
_BLIP = {"vision": "./itm", "match": "./itm", "answer": "./vqa"}
_LORA = {"rank": 2, "dropout": 0.1, "targets": ["query", "value"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "both": {},
    "answer": {"losses": {"itm": 0.0}},
    "itm": {"losses": {"answer": 0.0}, "early_stopping": {"metric": "val/itm_accuracy"}},
    "lora": {"model": {**_BLIP, "freeze": ["vision", "match", "answer"], "lora": {"match": _LORA, "answer": _LORA}}},
    "t5": {"model": {"answer": "./t5"}},
    "guided": {
        "model": {
            **_BLIP,
            "second_stream": "efficient_sam_masks",
            "efficient_sam": {"variant": "custom", "checkpoint": "./sam.safetensors"},
            "guidance": {"block": 0, "min_share": 0.6, "smoothing": 0.0},
            "freeze": ["vision", "second_stream", "match", "answer"],
        }
    },
    "second_blip": {"model": {"second_stream": "blip"}},
    "sum": {"model": {"fusion": {"name": "sum"}}},
}
"""Sections of a recipe, by the name of the variant; those of `model` are added to MODEL_SECTION."""


def write_towers() -> None:
    """The checkpoints that variants name, in the working directory."""
    tiny_checkpoints(Path("."))
    tiny_t5(Path("t5"))


def variant_config(name: str) -> RunConfig:
    """The recipe of a variant, read as a user's."""
    sections = dict(VARIANTS[name])
    model = MODEL_SECTION | sections.pop("model", {})
    batch = {"visits": VISITS, "micro_visits": VISITS // ACCUMULATION}
    return load_config(write_recipe(Path(f"{name}.yaml"), DATA, model=model, batch=batch, **sections))


def build(config: RunConfig) -> BuiltModel:
    """The untrained model of a recipe."""
    train = open_split(config, "train")
    return assemble_model(config, scratch_tokenizer=lambda: training_tokenizer(config, train))


def codecs() -> Codecs:
    """Every pairing of the codecs that models bring; questions are cut at few tokens."""
    short = {"data": {**DATA, "max_question_tokens": 10, "max_answer_tokens": 6, "workers": 0}}
    paired: list[BuiltModel] = []
    for model in (MODEL_SECTION, MODEL_SECTION | {"answer": "./t5"}):
        recipe = write_recipe(Path("codecs.yaml"), DATA, model=model)
        tree = json.loads(recipe.read_text()) | short
        recipe.write_text(json.dumps(tree))
        paired.append(build(load_config(recipe)))
    blip, t5 = paired
    return {
        "both": (blip.answer_codec, blip.match_codec),
        "answer": (blip.answer_codec, None),
        "match": (None, blip.match_codec),
        "t5": (t5.answer_codec, t5.match_codec),
    }


def named_sums(objective: Objective, sums: Tensor) -> dict[str, float]:
    """The sums of a forward pass by name."""
    return dict(zip(objective.sum_names, sums.tolist(), strict=True))


def variant_lines(name: str) -> Iterator[Line]:
    """Names, initial weights, losses, trained weights, validation and export of a variant."""
    config, world, task = variant_config(name), World(), task_named("gqa")
    built = build(config)
    objective = built.objective
    names = [parameter for parameter, _ in objective.named_parameters()]
    yield f"{name}.parameters.names", f"{len(names)} {text_digest(' '.join(names))}"
    yield f"{name}.parameters.initial", tensors_digest(sorted(weights(objective).items()))
    _shift(objective)
    for line, value in _train(config, built, world):
        yield f"{name}.{line}", value
    trained = weights(objective)
    yield f"{name}.parameters.trained", tensors_digest(sorted(trained.items()))

    objective.eval()
    batches, loader = evaluation_loader(config, open_split(config, "val"), built, world)
    items = list(loader.batches(batches.all_keys()))
    for sum_name, value in _sums_lines([named_sums(objective, objective.evaluate(item.batch).sums) for item in items]):
        yield f"{name}.eval.sum.{sum_name}", value
    yield f"{name}.generate", _generated(built, items)
    result = evaluate(objective, built, batches, loader, world, task=task, losses=config.losses)
    assert result is not None
    for metric, value in sorted(result.metrics.items()):
        yield f"{name}.{metric}", value.hex()
    predictions = gather_predictions(result.predictions, task, world)
    assert predictions is not None
    yield (
        f"{name}.predictions",
        f"{len(set(result.predictions.values()))} different {text_digest(predictions.content.decode())}",
    )
    detailed = evaluate(objective, built, batches, loader, world, task=task, losses=config.losses, detailed=True)
    assert detailed is not None
    yield f"{name}.detailed_metrics", _numbers_digest(detailed.metrics)
    yield f"{name}.counts", _numbers_digest(detailed.counts)

    export = Path("exports") / name
    export_model(config, built, trained, export, step=STEPS, metrics=result.metrics)
    yield from ((f"{name}.{line}", value) for line, value in export_lines(export))


def export_lines(export: Path) -> Iterator[Line]:
    """A digest of each file and of each directory of an export."""
    for path in sorted(export.iterdir()):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        contents = [f"{file.name} {_content_digest(file)}" for file in files if file.is_file()]
        yield f"export.{path.name}", text_digest("\n".join(contents))


def run_lines() -> Iterator[Line]:
    """What a whole run leaves, trained by the command of a rank in a process of its own: ZeRO-1, one process."""
    optim, limits = {"lr": 5e-3, "warmup_steps": 2}, {"epochs": RUN_EPOCHS}
    recipe = write_recipe(Path("run.yaml"), DATA, model=MODEL_SECTION, optim=optim, limits=limits)
    machine = {
        "PYTHONPATH": str(REPOSITORY),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "trainer.train", str(recipe)]
    ended = subprocess.run(command, env={**os.environ, **NO_COMPILER, **machine}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = LeftOver(Path("runs") / "run")
    series: dict[str, list[tuple[int, float]]] = {}
    for record in run.records:
        for name in record.keys() - {"step"}:
            series.setdefault(name, []).append((record["step"], float(record[name])))
    for name, points in sorted(series.items()):
        text = " ".join(f"{step}:{value.hex()}" for step, value in points)
        yield f"run.{name}", f"{len(points)} values, last {points[-1][1].hex()} {text_digest(text)}"
    yield "run.predictions", text_digest(run.predictions.decode())
    for pointer in ("last", "best"):
        checkpoint = run.checkpoint(pointer)
        yield f"run.{pointer}", checkpoint.name
        for file in (MODEL, OPTIMIZER):
            yield f"run.{pointer}.{file}", tensors_digest(sorted(load_file(checkpoint / file).items()))
    yield from ((f"run.{line}", value) for line, value in export_lines(run.directory.export))


def recorded_lines() -> Iterator[Line]:
    """The metrics that may decide which checkpoint is the best."""
    for label, losses in (("both", {}), ("answer", {"itm": 0.0}), ("itm", {"answer": 0.0})):
        yield f"recorded_metrics.{label}", " ".join(sorted(recorded_metrics("gqa", LossConfig(**losses))))


@torch.no_grad()
def _shift(objective: torch.nn.Module) -> None:
    """Move every trained weight by a draw of its own, whatever the order of the parameters."""
    for number, (_, parameter) in enumerate(sorted(objective.named_parameters())):
        parameter += SHIFT * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


def _train(config: RunConfig, built: BuiltModel, world: World) -> Iterator[Line]:
    batches, loader = training_loader(config, open_split(config, "train"), built, world)
    assert batches.accumulation == ACCUMULATION
    per_epoch = batches.split.steps_per_epoch
    epochs = range(-(-STEPS // per_epoch))
    items = (
        item for epoch in epochs for item in loader.batches(training_keys(epoch, 0, per_epoch, batches.accumulation))
    )
    optimizer = torch.optim.AdamW(built.objective.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    losses, sums = [], []
    for micro_step, item in enumerate(islice(items, STEPS * ACCUMULATION)):
        torch.manual_seed(micro_step)
        output = built.objective(item.batch)
        (output.loss / ACCUMULATION).backward()
        losses.append(output.loss.item().hex())
        sums.append(named_sums(built.objective, output.sums))
        if micro_step % ACCUMULATION == ACCUMULATION - 1:
            optimizer.step()
            optimizer.zero_grad()
    assert len(losses) == STEPS * ACCUMULATION
    yield "train.loss.first", losses[0]
    yield "train.loss.last", losses[-1]
    yield "train.loss.all", text_digest(" ".join(losses))
    for name, value in _sums_lines(sums):
        yield f"train.sum.{name}", value


def _sums_lines(sums: list[dict[str, float]]) -> Iterator[Line]:
    """A digest of each sum's course. One that is always 0 is left out: a loss that is not computed may have none."""
    for name in sorted(sums[0]):
        course = [step[name] for step in sums]
        if any(course):
            yield name, text_digest(" ".join(value.hex() for value in course))


def _generated(built: BuiltModel, items: Iterable[MicroBatch]) -> str:
    """Tokens of all answers and how sure the model is of them."""
    if built.answer_codec is None:
        return ABSENT
    fields = []
    for item in items:
        ids, probability = built.objective.generate(item.batch)
        fields += [("ids", ids), ("probability", probability)]
    return tensors_digest(fields)


def _content_digest(file: Path) -> str:
    """Of a file's bytes, but for what differs from one process to the next.

    The parts in export.json and README.md, and the target modules of an adapter, stand in the order of a set. PEFT's
    file names the base model by its full path. The metadata of a .safetensors file with several values has no order. A
    manifest has the digests of all of these, and where frozen checkpoints lie.
    """
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            tensors = tensors_digest((name, opened.get_tensor(name)) for name in sorted(names))
            return f"{tensors} {json.dumps([sorted(names), opened.metadata()], sort_keys=True)}"
    if file.name in ("export.json", "adapter_config.json"):
        tree = json.loads(file.read_text())
        if "target_modules" in tree:
            tree["target_modules"] = sorted(tree["target_modules"])
            tree["base_model_name_or_path"] = os.path.relpath(tree["base_model_name_or_path"])
        return text_digest(json.dumps(tree, sort_keys=True))
    if file.name == "manifest.json":
        tree = json.loads(file.read_text())
        return text_digest(json.dumps([tree["format"], sorted(tree["files"]), sorted(tree["frozen"])]))
    if file.name == "README.md":
        return text_digest(re.sub(r"(?<=Trained parts: )[^.]*", _sorted_list, file.read_text()))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sorted_list(match: re.Match[str]) -> str:
    return ", ".join(sorted(match[0].split(", ")))


def _numbers_digest(numbers: Mapping[str, float]) -> str:
    return text_digest(" ".join(f"{name}:{float(value).hex()}" for name, value in sorted(numbers.items())))
