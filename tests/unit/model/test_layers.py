"""Layer-wise learning rates: timm's groups for timm's models, and the same rule for BLIP, T5 and EfficientSAM."""

from pathlib import Path

import pytest
import timm
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import LxmertModel, T5ForConditionalGeneration

from model.layers import layer_scales, tower_depths
from model.towers.lxmert import LxmertTower, RegionTower
from tests.models import tiny_model, tiny_t5
from tests.regions import tiny_config
from trainer.engine.parameter_groups import parameter_groups

DECAY, WEIGHT_DECAY = 0.75, 0.05
SIZES = {
    "vit_tiny_patch16_224": {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 3},
    "beit_base_patch16_224": {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 2},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)},
}


class Read(nn.Module):
    """A tower and what reads it."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision, self.fusion = vision, nn.Linear(3, 2)


def small(name: str, num_classes: int) -> nn.Module:
    return timm.create_model(name, num_classes=num_classes, **SIZES[name])


def described(module: nn.Module, groups: list[dict]) -> set[tuple[float, float, frozenset[str]]]:
    """Groups without their order: scale, weight decay and names."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        (group["lr_scale"], group["weight_decay"], frozenset(names[parameter] for parameter in group["params"]))
        for group in groups
    }


@pytest.mark.parametrize("name", SIZES)
def test_the_groups_of_a_model_of_timms_are_timms(name):
    model = small(name, num_classes=4)
    expected = described(model, param_groups_layer_decay(model, WEIGHT_DECAY, layer_decay=DECAY))
    objective = Read(model)
    scales = layer_scales(objective, DECAY)
    assert scales.pop("fusion.weight") == scales.pop("fusion.bias") == 1.0
    own = {name.removeprefix("vision."): scale for name, scale in scales.items()}
    assert described(model, parameter_groups(model, WEIGHT_DECAY, own)) == expected
    assert len(expected) > 6, "few layers compare little"


def test_a_neck_is_as_far_up_as_a_head():
    sizes = {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 2, "global_attn_indexes": (1,), "neck_chans": 8}
    with_head, without = (timm.create_model("samvit_base_patch16", num_classes=count, **sizes) for count in (4, 0))
    expected = described(with_head, param_groups_layer_decay(with_head, WEIGHT_DECAY, layer_decay=DECAY))
    scales = {name: DECAY**depth for name, depth in tower_depths(with_head).items()}
    assert described(with_head, parameter_groups(with_head, WEIGHT_DECAY, scales)) == expected
    depths = tower_depths(without)
    assert {depth for name, depth in depths.items() if name.startswith("neck.")} == {0}
    assert depths == {name: depth for name, depth in tower_depths(with_head).items() if name in depths}


def test_a_tower_without_a_head_is_scaled_as_below_one():
    with_head, without = (
        layer_scales(Read(small("vit_tiny_patch16_224", num_classes=count)), DECAY) for count in (4, 0)
    )
    assert with_head.keys() - without.keys() == {"vision.head.weight", "vision.head.bias"}
    assert all(with_head[name] == scale for name, scale in without.items())


def test_a_model_of_timms_inside_a_tower_is_found():
    wrapped = nn.Sequential(small("vit_tiny_patch16_224", num_classes=0), nn.Linear(24, 2))
    depths = tower_depths(wrapped)
    assert depths["0.patch_embed.proj.weight"] == 4
    assert depths["0.blocks.0.norm1.weight"] == 3


def test_the_layers_of_blip_and_efficient_sam_count_from_their_embeddings_up():
    objective = tiny_model().objective
    scales = layer_scales(objective, 0.5)
    assert scales.keys() == dict(objective.named_parameters()).keys()
    for part, expected in (
        ("vision.embeddings.", 0.5**3),
        ("vision.encoder.layers.0.", 0.5**2),
        ("vision.encoder.layers.1.", 0.5),
        ("vision.post_layernorm.", 0.5),
        ("second_stream.encoder.patch_embed.", 0.5**2),
        ("second_stream.encoder.pos_embed", 0.5**2),
        ("second_stream.encoder.blocks.0.", 0.5),
        ("second_stream.encoder.neck.", 0.5),
        ("match.text_encoder.embeddings.", 0.5**3),
        ("match.text_encoder.encoder.layer.0.", 0.5**2),
        ("match.text_encoder.encoder.layer.1.", 0.5),
        ("match.itm_head.", 1.0),
        ("answer.text_decoder.bert.embeddings.", 0.5**3),
        ("answer.text_decoder.bert.encoder.layer.0.", 0.5**2),
        ("answer.text_decoder.bert.encoder.layer.1.", 0.5),
        ("answer.text_decoder.cls.", 1.0),
        ("fusion.", 1.0),
    ):
        found = {scale for name, scale in scales.items() if name.startswith(part)}
        assert found == {expected}, part


def test_encoder_and_decoder_of_t5_count_apart(tmp_path: Path):
    model = T5ForConditionalGeneration.from_pretrained(tiny_t5(tmp_path))
    layers = model.config.num_layers
    depths = tower_depths(model)
    assert depths["shared.weight"] == layers + 1
    for stack in ("encoder", "decoder"):
        assert {depths[name] for name in depths if name.startswith(f"{stack}.block.0.")} == {layers}
        assert depths[f"{stack}.final_layer_norm.weight"] == 1
    assert depths.get("lm_head.weight", 0) == 0


def test_the_cross_layers_of_lxmert_lie_on_those_of_its_language():
    model = LxmertModel(tiny_config(vocab_size=60, l_layers=3, r_layers=2, x_layers=2))
    text, regions = tower_depths(LxmertTower(model)), tower_depths(RegionTower(model).module)
    for depths, part, depth in (
        (text, "embeddings.", 6),
        (text, "encoder.layer.0.", 5),
        (text, "encoder.layer.2.", 3),
        (text, "encoder.x_layers.0.", 2),
        (text, "encoder.x_layers.1.", 1),
        (text, "pooler.", 1),
        (regions, "encoder.visn_fc.", 3),
        (regions, "encoder.r_layers.0.", 2),
        (regions, "encoder.r_layers.1.", 1),
    ):
        assert {found for name, found in depths.items() if name.startswith(part)} == {depth}, part


def test_a_decay_of_1_scales_nothing():
    assert set(layer_scales(tiny_model().objective, 1.0).values()) == {1.0}
