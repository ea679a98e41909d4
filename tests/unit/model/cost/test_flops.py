"""The closed form of a step's operations against torch's own counter, which sees every matrix product that runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import LossConfig
from model.cost.flops import StepFlops, no_closed_form
from model.fusion_objective import FusionObjective
from model.looking.second_stream import map_to_cells
from shards.plan import Share
from shards.read.collate import Batch, CachedTokens, SeenFeatures
from tests.backbones import write_backbone
from tests.models import random_batch as random
from tests.models import tiny_checkpoints, tiny_model, tiny_t5
from tests.task_corpora import write_task
from tests.unit.tasks.trials import Choice, Trial

TOLERANCE = 0.02
LORA = {"rank": 2, "targets": ["query", "value"]}
WIDE = {"layers": 2, "separate_layers": 1, "repeats": 1, "heads": 3, "dropout": 0.0, "width": 24}
FROZEN = ("vision", "second_stream", "match", "answer")
STREAMS = FROZEN[:2]
VARIANTS: dict[str, dict[str, Any]] = {
    "all trained": {},
    "all frozen": {"freeze": FROZEN},
    "vision alone trained": {"freeze": FROZEN[1:]},
    "texts alone trained": {"freeze": FROZEN[:2]},
    "second stream alone trained": {"freeze": ("vision", "match", "answer")},
    "deeper difnet": {"fusion": {"layers": 3, "separate_layers": 2, "repeats": 2, "heads": 3, "width": 30}},
    "concatenation": {"fusion": {"name": "concatenation", "layers": 2, "heads": 3}, "freeze": FROZEN},
    "sum": {"fusion": {"name": "sum"}, "freeze": FROZEN},
    "single stream": {"second_stream": "none", "freeze": FROZEN},
    "single stream, sum": {"second_stream": "none", "fusion": {"name": "sum"}, "freeze": ()},
    "second blip": {"second_stream": "blip", "freeze": FROZEN},
    "efficient_sam first": {"vision": "efficient_sam", "second_stream": "blip", "fusion": WIDE, "freeze": FROZEN},
    "lora": {"freeze": FROZEN, "lora": {"match": LORA, "answer": LORA}},
}


def counted(objective: FusionObjective, batch: Batch) -> tuple[float, float]:
    """Operations of forward and backward as they run; attention in the form whose products the counter sees."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = objective(batch).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def assert_equal(objective: FusionObjective, batch: Batch) -> None:
    assert no_closed_form(objective) is None
    for found, expected in zip(StepFlops(objective).split(batch), counted(objective, batch), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_towers_and_fusions(name: str) -> None:
    assert_equal(tiny_model(**VARIANTS[name]).objective, random((3, 1, 4)))


def with_tokens(objective: FusionObjective, batch: Batch, streams: frozenset[str]) -> Batch:
    """The batch as the loader gives it where these streams are cached."""
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        if "vision" in streams:
            found["vision"] = objective.image_tokens(batch.shown).half()
        if "second_stream" in streams:
            found["second_stream"] = map_to_cells(objective.feature_map(batch.shown)).half()
    vision, second = (CachedTokens(found[name], None) if name in found else None for name in STREAMS)
    left = None if len(found) == len(STREAMS) or objective.tower("second_stream") is None else batch.shown
    return batch._replace(shown=SeenFeatures(vision, second, left))


@pytest.mark.parametrize("streams", [STREAMS[:1], STREAMS[1:], STREAMS])
@pytest.mark.parametrize("name", ["all frozen", "concatenation", "second blip", "lora"])
def test_an_encoder_whose_tokens_are_cached_costs_nothing(name: str, streams: tuple[str, ...]) -> None:
    objective, batch = tiny_model(**VARIANTS[name]).objective, random((3, 1, 4))
    flops, cached = StepFlops(objective), with_tokens(objective, batch, frozenset(streams))
    for found, expected in zip(flops.split(cached), counted(objective, cached), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)
    assert flops(cached) < flops(batch), "one and the same counter tells them apart"


def test_cached_regions(tmp_path: Path) -> None:
    trial = Trial.of(tmp_path, Choice("lxmert", ()), write_task(tmp_path / "data", "lxmert"))
    batch = trial.training(Share(rank=0, world_size=1, micro_visits=2)).prepare(0, 0, 0).batch
    cached = with_tokens(trial.objective, batch, frozenset(STREAMS[:1]))
    for found, expected in zip(StepFlops(trial.objective).split(cached), counted(trial.objective, cached), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("losses", [LossConfig(itm=0.0), LossConfig(answer=0.0)])
def test_a_loss_that_has_no_weight_costs_nothing(losses: LossConfig) -> None:
    assert_equal(tiny_model(losses=losses, freeze=FROZEN).objective, random((2, 3)))


@pytest.mark.parametrize("freeze", [FROZEN, FROZEN[:3]])
def test_t5_answers(tmp_path: Path, freeze: tuple[str, ...]) -> None:
    found = tiny_checkpoints(tmp_path)
    model = {"vision": found["itm"], "match": found["itm"], "answer": tiny_t5(tmp_path / "t5")}
    lora = {"answer": {"rank": 2, "targets": ["q", "v"]}} if freeze == FROZEN else {}
    assert_equal(tiny_model(**model, freeze=freeze, lora=lora).objective, random((2, 3)))


@pytest.mark.parametrize("family", ["vit", "convnext"])
@pytest.mark.parametrize("freeze", [FROZEN, ("match", "answer")])
def test_backbones_of_timm(tmp_path: Path, family: str, freeze: tuple[str, ...]) -> None:
    second = write_backbone(tmp_path / family, family)
    assert_equal(tiny_model(second_stream="timm", second_vision=second, freeze=freeze).objective, random((2, 3)))


@pytest.mark.parametrize("corpus", ["vqa", "snli_ve", "nlvr2", "lxmert"])
def test_tasks_of_other_blocks(tmp_path: Path, corpus: str) -> None:
    trial = Trial.of(tmp_path, Choice(corpus, ()), write_task(tmp_path / "data", corpus))
    batch = trial.training(Share(rank=0, world_size=1, micro_visits=2)).prepare(0, 0, 0).batch
    assert_equal(trial.objective, batch)


def test_recomputed_activations_are_not_the_models_work() -> None:
    plain, sparing = (tiny_model(gradient_checkpointing=flag, freeze=FROZEN).objective for flag in (False, True))
    batch = random((2, 3))
    assert StepFlops(sparing)(batch) == StepFlops(plain)(batch)
    assert sum(counted(sparing, batch)) > 1.1 * sum(counted(plain, batch))


def test_what_depends_on_what_the_model_sees_has_none(tmp_path: Path) -> None:
    found = tiny_checkpoints(tmp_path)
    model = {"vision": found["itm"], "match": found["itm"], "answer": found["vqa"]}
    sam = {"variant": "custom", "checkpoint": found["sam"]}
    guided = tiny_model(**model, second_stream="efficient_sam_masks", efficient_sam=sam, freeze=FROZEN).objective
    assert "efficient_sam_masks" in (no_closed_form(guided) or "")
    assert "none" in (no_closed_form(torch.nn.Linear(1, 1)) or "")
