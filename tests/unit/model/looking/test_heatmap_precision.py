"""Autocast around a heatmap changes nothing of it: gradients this small do not survive half precision."""

import pytest
import torch

from model.config import GuidanceConfig
from model.fusion_objective import FusionObjective
from model.looking.guidance import look
from model.looking.heatmap import text_heatmaps
from model.rows import Grouping
from tests.models import random_batch, tiny_checkpoints, tiny_model
from tests.unit.model.looking.test_heatmap import Asked, plain_model, tower_of

NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("tower_dtype", [torch.float32, torch.bfloat16])
def test_heatmaps_are_the_same_under_autocast(dtype: torch.dtype, tower_dtype: torch.dtype) -> None:
    model = plain_model(layers=3).to(tower_dtype)
    asked = Asked(plain_model(layers=3), [[5, 3], [7]])
    asked.tokens = asked.tokens.to(tower_dtype)
    expected = asked.heatmaps(tower_of(model), block=1)
    with torch.autocast("cpu", dtype=dtype):
        found = asked.heatmaps(tower_of(model), block=1)
        assert torch.is_autocast_enabled("cpu"), "it is on again behind"
    assert found.dtype == torch.float32
    assert expected.max() > 0, "a cold heatmap proves nothing"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_tokens_that_autocast_has_made_are_read_in_the_towers_precision(dtype: torch.dtype) -> None:
    model = plain_model(layers=3)
    asked = Asked(model, [[5, 3], [7]])
    asked.tokens = asked.tokens.to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        found = asked.heatmaps(tower_of(model), block=1)
    asked.tokens = asked.tokens.float()
    assert torch.equal(found, asked.heatmaps(tower_of(model), block=1))


@pytest.mark.parametrize("dtype", NARROW)
def test_no_rows_have_float32_heatmaps_too(dtype: torch.dtype) -> None:
    asked = Asked(plain_model(layers=3), [[], []])
    grouping = Grouping.of(asked.image, num_images=2, rows_per_image=0)
    tower = tower_of(plain_model(layers=3))
    with torch.autocast("cpu", dtype=dtype):
        found = text_heatmaps(tower, asked.ids, asked.mask, asked.tokens.to(dtype), grouping, block=1)
    assert (found.dtype, found.shape) == (torch.float32, (0, 3, 3))


ROWS = (2, 1)


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> FusionObjective:
    checkpoints = tiny_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    built = tiny_model(
        vision=checkpoints["itm"],
        match=checkpoints["itm"],
        answer=checkpoints["vqa"],
        second_stream="efficient_sam_masks",
        efficient_sam={"variant": "custom", "checkpoint": checkpoints["sam"]},
        guidance={"block": 0, "min_share": 0.6, "smoothing": 0.0},
        freeze=("vision", "second_stream", "match", "answer"),
    )
    return built.objective.eval()


def test_look_finds_the_same_points_under_autocast(guided: FusionObjective) -> None:
    batch = random_batch(ROWS)
    ask = batch.blocks["ask"]
    tokens, maps = guided.image_tokens(batch.shown), guided.feature_map(batch.shown)
    grouping = Grouping.of(ask.image, num_images=len(maps), rows_per_image=ask.rows_per_image)
    config = GuidanceConfig(block=0, min_share=0.6, smoothing=0.0)
    settings = {"segmenter": guided.tower("second_stream").segmenter, "embeddings": maps, "config": config}
    rows = (guided.tower("match"), ask.ids, ask.mask, tokens, grouping)
    plain = look(*rows, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = look(*rows, **settings)
    assert torch.equal(found.heatmaps, plain.heatmaps)
    assert found.points == plain.points
    assert any(plain.points)
    assert found.masks.dtype == found.refined.dtype == torch.float32
    torch.testing.assert_close(found.masks, plain.masks, atol=0.05, rtol=0.0)


def test_a_guided_loss_under_autocast_is_near_that_without(guided: FusionObjective) -> None:
    batch = random_batch(ROWS)
    plain = guided(batch).loss.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = guided(batch).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(plain), rel=0.1)
    assert all(parameter.grad is not None for parameter in guided.parameters())
