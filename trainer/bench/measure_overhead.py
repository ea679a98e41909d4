"""Measures a step of the whole loop against the same step by hand, in turn, on the same tensors."""

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from shards.build.writer import build_shards
from shards.read.micro_batch import MicroBatch
from shards.scenes.command import write_scenes
from trainer.bench.machine import circumstances
from trainer.build import assemble_model, training_tokenizer
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import World, initialize
from trainer.engine.parameter_groups import parameter_groups
from trainer.engine.signals import StopRequest
from trainer.reporting.gauge import Gauge
from trainer.run_directory import RunDirectory
from trainer.training.loop import train_epoch
from trainer.training.loss_watch import LossWatch
from trainer.training.setup import set_up
from trainer.training.state import Run, Step, TrainState

IMAGES = 480
"""Drawn for it; two thirds of them train."""
STAGES = (0, 1)
WARM_UP = 3
"""Steps in front that do not count."""
LARGEST_DIFFERENCE = 1e-4
"""Of the losses of a step, relative: the loop and the bare step round alike, and drift apart as they train."""

MODELS: dict[str, dict[str, Any]] = {
    "10 ms": {"width": 48, "layers": 1, "visits": 1, "questions": 4, "image_size": 32},
    "100 ms": {"width": 128, "layers": 2, "visits": 4, "questions": 8, "image_size": 64},
    "1 s": {"width": 256, "layers": 4, "visits": 12, "questions": 12, "image_size": 96},
}
"""By about how long a step takes on two cores of a server."""


class Overhead(NamedTuple):
    """Medians over steps."""

    model: str
    stage: int
    bare_ms: float
    loop_ms: float
    data: float
    """Part of the loop's time that it waited for data."""
    host: float
    """Part of it that was neither data, network nor the engine: logging, schedule, sums."""
    gauge_ms: float
    """What the limit gauge takes of a step, measured by itself."""
    loss: float
    """Of the first step, by the loop."""
    bare_loss: float

    @property
    def part(self) -> float:
        """By how much the loop's step is longer, as a part of the bare one."""
        return self.loop_ms / self.bare_ms - 1.0

    @property
    def gauge_part(self) -> float:
        return self.gauge_ms / self.loop_ms


def unequal(found: Sequence[Overhead]) -> list[str]:
    """Those that have not computed the same thing."""
    return [
        f"{row.model} at stage {row.stage}"
        for row in found
        if not abs(row.loss - row.bare_loss) <= LARGEST_DIFFERENCE * abs(row.bare_loss)
    ]


def measure_overhead(
    device: torch.device, *, rounds: int, progress: Callable[[str], None] = lambda _: None
) -> tuple[list[Overhead], dict[str, Any]]:
    """Every model at every stage, and what the figures depend on."""
    found = []
    with tempfile.TemporaryDirectory(prefix="duoflow.overhead.") as directory:
        shards = _shards(Path(directory))
        world = initialize(timeout_seconds=300.0)
        assert world.device.type == device.type, "DeepSpeed and the benchmark choose by the same rule"
        for name, sizes in MODELS.items():
            for stage in STAGES:
                progress(f"{name} at stage {stage}")
                recipe = _recipe(Path(directory) / f"{name}.{stage}.yaml".replace(" ", ""), shards, sizes, stage)
                found.append(_measure(name, stage, load_config(recipe), world, rounds))
                gc.collect()
        world.close()
    about = {
        **circumstances(device),
        "rounds": rounds,
        "models": MODELS,
    }
    return found, about


def _shards(directory: Path) -> Path:
    scenes, out = directory / "scenes", directory / "shards"
    write_scenes(scenes, num_images=IMAGES, seed=1)
    build_shards(format="gqa", questions=[scenes / "train_balanced_questions.json"], images=scenes / "images", out=out)
    return out


def _recipe(path: Path, shards: Path, sizes: dict[str, Any], stage: int) -> Path:
    width, layers, side = sizes["width"], sizes["layers"], sizes["image_size"]
    scratch = {"image_size": side, "patch_size": 8, "width": width, "heads": 4, "vocab_size": 300}
    tree = {
        "run": {"directory": str(path.parent / "runs")},
        "data": {"train": str(shards), "questions_per_visit": sizes["questions"], "workers": 1},
        "model": {
            "second_stream": "none",
            "fusion": {"layers": layers + 1, "heads": 4, "dropout": 0.0},
            "scratch": scratch | {"vision_layers": layers, "text_layers": layers},
            "freeze": [],
        },
        "batch": {"visits": sizes["visits"], "micro_visits": sizes["visits"]},
        "engine": {"policy": f"ds_configs/zero{stage}.json"},
        "logging": {"every_steps": 10, "tensorboard": False},
        "limits": {"epochs": 1000},
    }
    path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return path


def _measure(name: str, stage: int, config: RunConfig, world: World, rounds: int) -> Overhead:
    directory = RunDirectory.of(config)
    directory.create()
    run, state = set_up(config, directory, world, StopRequest(), run_id="bench")
    given: list[MicroBatch] = []
    ours = _steps(run, state, given)
    bare = _Bare(config, run)
    loop_seconds, bare_seconds, data, host = [], [], [], []
    losses: tuple[float, float] | None = None
    for number in range(WARM_UP + rounds):
        run.gauge.start()  # the bare step between two of the loop's is none of its time
        began = time.perf_counter()
        step = next(ours)
        took = time.perf_counter() - began
        began = time.perf_counter()
        loss = bare.step(given)
        bare_took = time.perf_counter() - began
        if losses is None:
            losses = sum(step.sums[key] for key in ("answer_loss", "itm_loss")), loss
        if number >= WARM_UP:
            loop_seconds.append(took)
            bare_seconds.append(bare_took)
            limits = run.gauge.take() or run.gauge.latest
            if limits is not None:
                data.append(limits.data)
                host.append(limits.host)
    gauge_seconds = _gauge_seconds(run.gauge, given)
    ours.close()
    run.engine.close()
    run.recorder.close()
    assert losses is not None
    return Overhead(
        name,
        stage,
        1000 * median(bare_seconds),
        1000 * median(loop_seconds),
        median(data),
        median(host),
        1000 * gauge_seconds,
        losses[0],
        losses[1],
    )


def _steps(run: Run, state: TrainState, given: list[MicroBatch]) -> Iterator[Step]:
    """The loop's own steps, epoch behind epoch; `given` holds the micro-batches of the last one."""
    loader = run.train_loader
    batches = loader.batches

    def noted(keys: list[tuple[int, ...]]) -> Iterator[MicroBatch]:
        for item in batches(keys):
            given[:] = [item]  # a step has one micro-batch here
            yield item

    loader.batches = noted
    watch = LossWatch()
    while True:
        yield from train_epoch(run, state, watch)


class _Bare:
    """What somebody would write by hand around the same objective."""

    def __init__(self, config: RunConfig, run: Run) -> None:
        split = run.train_batches.split
        built = assemble_model(config, scratch_tokenizer=lambda: training_tokenizer(config, split))
        self._objective, self._device = built.objective, run.world.device
        self._objective.to(device=self._device, dtype=run.engine.dtype)
        self._objective.place_frozen(self._device, run.engine.dtype)
        self._schedule, self._number = run.schedule, 0
        self._largest = config.optim.max_grad_norm
        groups = parameter_groups(self._objective, config.optim.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, betas=(0.9, 0.999))

    def step(self, given: Sequence[MicroBatch]) -> float:
        """The summed losses, unweighted."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule(self._number)
        self._number += 1
        total = 0.0
        for item in given:
            output = self._objective(item.batch.to(self._device))
            output.loss.backward()
            names = dict(zip(self._objective.sum_names, output.sums.tolist(), strict=True))
            total += names["answer_loss"] + names["itm_loss"]
        if self._largest is not None:
            nn.utils.clip_grad_norm_(self._objective.parameters(), self._largest)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total


def _gauge_seconds(gauge: Gauge, given: Sequence[MicroBatch], times: int = 200) -> float:
    """What a step's readings take, with nothing between them."""
    gauge.start()
    began = time.perf_counter()
    for _ in range(times):
        for item in gauge.reading(given):
            with gauge.computing(item.batch):
                pass
            with gauge.draining():
                pass
            with gauge.updating():
                pass
        with gauge.draining():
            pass
        own = gauge.own()
        with gauge.agreeing():
            pass
        gauge.add(own)
    took = (time.perf_counter() - began) / times
    gauge.take()
    return took
