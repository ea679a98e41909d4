"""Towers that no checkpoint fills: what their tokens say before the first step."""

import math

import pytest
import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering

from model.config import EfficientSamConfig, ScratchConfig
from model.source import build_efficient_sam, initialize_blip, scratch_blip_config
from model.towers.tokenizer import build_tokenizer
from model.towers.vision import BlipVisionTower, EfficientSamTower, VisionTower
from model.untrained import RESIDUAL_GAIN, waves
from shards.scenes import color_and_detail, six_things
from shards.scenes.world import Dice


def pictures(kind: str) -> Tensor:
    """(32, 3, 64, 64) uint8."""
    if kind == "color_and_detail":
        drawn = [color_and_detail.draw(color_and_detail.things(Dice(1, number))) for number in range(32)]
    else:
        dice = [Dice(1, number) for number in range(32)]
        drawn = [six_things.draw(each, six_things.things(each)) for each in dice]
    return torch.stack([torch.from_numpy(pixels) for pixels in drawn]).permute(0, 3, 1, 2)


def towers() -> dict[str, VisionTower]:
    torch.manual_seed(0)
    sizes = ScratchConfig(image_size=64, patch_size=8, width=96, heads=4, vision_layers=3)
    model = BlipForQuestionAnswering(scratch_blip_config(sizes, build_tokenizer(["one"], vocab_size=20)))
    initialize_blip(model)
    custom = EfficientSamConfig(
        variant="custom", image_size=64, patch_size=8, width=64, depth=2, heads=4, neck_width=64
    )
    return {
        "blip": BlipVisionTower(model.vision_model.eval()),
        "efficient_sam": EfficientSamTower(build_efficient_sam(custom, checkpointing=False).eval()),
    }


@pytest.mark.parametrize("kind", ["six_things", "color_and_detail"])
@pytest.mark.parametrize("name", ["blip", "efficient_sam"])
def test_tokens_say_where_they_are_and_what_is_there(name: str, kind: str):
    """Shares of the energy of all tokens: one vector that they have in common, their place, and the image."""
    tower = towers()[name]
    with torch.no_grad():
        tokens = tower.encode(pictures(kind))[:, tower.prefix :]
    common = tokens.mean(dim=(0, 1))
    place = tokens.mean(dim=0) - common
    image = tokens - tokens.mean(dim=0)
    energy = tokens.square().sum(dim=-1).mean()
    shares = {
        "common": common.square().sum() / energy,
        "place": place.square().sum(dim=-1).mean() / energy,
        "image": image.square().sum(dim=-1).mean() / energy,
    }
    assert math.isclose(sum(map(float, shares.values())), 1.0, abs_tol=1e-3)
    assert shares["common"] < 0.5, shares
    assert shares["place"] > 0.1, shares
    assert shares["image"] > 0.15, shares


@pytest.mark.parametrize(("grid", "width"), [(1, 96), (2, 16), (8, 96), (24, 50)])
def test_places_are_centred_apart_and_alike_where_they_are_near(grid: int, width: int):
    places = waves(grid, width)
    assert places.shape == (grid * grid, width)
    if grid == 1:
        assert not places.any()
        return
    used = places[:, : width // 4 * 4]
    torch.testing.assert_close(used.mean(dim=0), torch.zeros(used.shape[1]), atol=1e-5, rtol=0)
    distances = torch.cdist(used, used)
    assert distances[~torch.eye(len(used), dtype=torch.bool)].min() > 0.1
    if grid > 2:
        corner = distances[0].view(grid, grid)
        assert corner[0, 1] < corner[0, grid // 2]


def test_a_residual_branch_whispers():
    block = towers()["blip"].module.encoder.layers[0]
    assert block.mlp.fc2.weight.std().item() == pytest.approx(RESIDUAL_GAIN / math.sqrt(4 * 96), rel=0.1)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(1 / math.sqrt(96), rel=0.1)
