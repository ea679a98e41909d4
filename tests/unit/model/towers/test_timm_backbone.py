"""Backbones of timm: tokens and pixels as timm has them, and nothing registered that cannot be trained."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from model.config import GuidanceConfig
from model.looking.second_stream import GridTokens, TowerStream
from model.pnp.viewer import Viewer
from model.references import read_reference
from model.towers.timm_backbone import TimmVisionTower, examine, load_backbone
from shards.errors import ConfigError
from tests.backbones import FAMILIES, SIDE, TRAINABLE, write_backbone
from tests.models import FUSION, random_batch, tiny_model

FITTING = FUSION | {"width": 24}
"""A fusion between towers of any width."""

Backbones = Callable[[str], str]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Backbones:
    """Gives the reference of a family, whose directory is written once."""
    base, written = tmp_path_factory.mktemp("backbones"), {}

    def reference(family: str) -> str:
        if family not in written:
            written[family] = write_backbone(base / family, family)
        return written[family]

    return reference


def tower_of(reference: str, *, trained: bool = False, **options: bool) -> TimmVisionTower:
    options = {"checkpointing": False} | options
    tower = load_backbone(examine("model.vision=x", read_reference(reference)), trained=trained, **options)
    tower.module.eval()
    return tower


def plain(reference: str) -> torch.nn.Module:
    """The same as timm itself loads it."""
    return timm.create_model(read_reference(reference).timm_source, pretrained=True).eval()


def random_pixels(side: int, *, images: int = 2) -> Tensor:
    return torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "grid"), [("levit_128s", 4), ("levit_conv_128s", 4)])
def test_a_grid_whose_sides_were_halved_and_rounded_up_has_nothing_in_front(name: str, grid: int):
    layout = examine(f"model.vision=timm:{name}", read_reference(f"timm:{name}@scratch")).layout
    assert (layout.prefix, layout.grid) == (0, grid)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tokens_are_the_features_of_timm_and_the_cells_lie_row_by_row(backbones: Backbones, family: str):
    tower, model, known = tower_of(backbones(family)), plain(backbones(family)), FAMILIES[family]
    pixels = random_pixels(tower.image_size)
    inputs = tower.reads.pixels(pixels, torch.float32)
    tokens, features = tower.encode(pixels), model.forward_features(inputs)
    assert (tower.prefix, tower.grid) == (known.prefix, known.grid)
    assert tokens.shape == (2, tower.prefix + tower.grid**2, tower.width)
    # Timm's own word on where a cell lies: maps of the last stage, (B, C, h, w) for every architecture.
    options = {"indices": 1, "norm": family not in ("convnext", "efficientnet", "hiera"), "intermediates_only": True}
    (cells,) = model.forward_intermediates(inputs, output_fmt="NCHW", **options)
    if family == "efficientnet":  # its last stage is in front of the last convolution
        cells = model.bn2(model.conv_head(cells))
    torch.testing.assert_close(tokens[:, tower.prefix :].transpose(1, 2).unflatten(2, (tower.grid,) * 2), cells)
    assert torch.equal(tokens.flatten().sort().values, features.flatten().sort().values)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_as_second_stream_the_map_has_the_cells_and_not_what_stands_in_front(backbones: Backbones, family: str):
    tower = tower_of(backbones(family))
    stream, pixels = TowerStream(tower), random_pixels(40)
    found = stream(pixels)
    assert found.shape == (2, stream.width, tower.grid, tower.grid)
    assert torch.equal(found.flatten(2).transpose(1, 2), tower.encode(pixels)[:, tower.prefix :])
    assert stream.image_size == tower.image_size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stream", ["vision", "second_stream"])
def test_every_registered_parameter_gets_a_gradient(backbones: Backbones, family: str, stream: str):
    reference, frozen = backbones(family), FAMILIES[family].has_batch_statistics
    towers = {"vision": reference} if stream == "vision" else {"second_stream": "timm", "second_vision": reference}
    objective = tiny_model(**towers, fusion=FITTING, freeze=(stream,) if frozen else ()).objective
    objective(random_batch((2, 1))).loss.backward()
    found = {name: parameter.grad for name, parameter in objective.named_parameters() if name.startswith(stream)}
    assert bool(found) != frozen
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    assert all(parameter.grad is None for _, tower in objective.frozen_towers() for parameter in tower.parameters())


@pytest.mark.parametrize("family", TRAINABLE)
def test_recomputing_changes_neither_loss_nor_gradients(backbones: Backbones, family: str):
    results = []
    for checkpointing in (False, True):
        model = {"vision": backbones(family), "fusion": FITTING, "gradient_checkpointing": checkpointing}
        objective = tiny_model(**model).objective
        loss = objective(random_batch((2, 1))).loss
        loss.backward()
        results.append((loss.detach(), [p.grad for n, p in objective.named_parameters() if n.startswith("vision")]))
    (one, gradients), (other, again) = results
    assert torch.equal(one, other)
    for left, right in zip(gradients, again, strict=True):
        torch.testing.assert_close(left, right)


def test_layers_that_only_the_class_token_passes_are_not_trained_where_only_cells_are_read(tmp_path: Path):
    sizes = {"img_size": SIDE, "depth": 1, "embed_dim": 24, "num_heads": 3}
    model = timm.create_model("cait_xxs24_224", **sizes, init_values=0.1)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    reference = f"timm:{tmp_path}"
    first = dict(tower_of(reference, trained=True).module.named_parameters())
    second_tower = tower_of(reference, trained=True, cells_alone=True)
    second = dict(second_tower.module.named_parameters())
    assert {name.partition(".")[0] for name in first.keys() - second.keys()} == {"cls_token", "blocks_token_only"}
    assert torch.equal(tower_of(reference).encode(random_pixels(SIDE)), second_tower.encode(random_pixels(SIDE)))
    objective = tiny_model(second_stream="timm", second_vision=reference).objective
    objective(random_batch((2, 1))).loss.backward()
    assert all(parameter.grad.any() for name, parameter in objective.named_parameters() if name.startswith("second"))
    second_tower.save({name: value.detach() for name, value in second.items()}, tmp_path / "again")
    assert plain(f"timm:{tmp_path / 'again'}").state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_timms_own_transform(tmp_path: Path, family: str, interpolation: str):
    options = {"crop_pct": 1.0, "interpolation": interpolation, "mean": (0.1, 0.5, 0.7), "std": (0.2, 0.3, 0.4)}
    reference = write_backbone(tmp_path, family, **options)
    tower = tower_of(reference)
    config = timm.data.resolve_data_config(model=plain(reference))
    transform = timm.data.create_transform(**config, is_training=False)
    pixels = random_pixels(tower.image_size, images=1)
    image = Image.fromarray(np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy()))
    found = tower.reads.pixels(pixels, torch.float32)[0]
    torch.testing.assert_close(found, transform(image), atol=1e-6, rtol=0)
    assert tower.reads.interpolation == interpolation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_frozen_towers_work_in_half_precision(backbones: Backbones, family: str, dtype: torch.dtype):
    tower, pixels = tower_of(backbones(family)), random_pixels(SIDE)
    expected = tower.encode(pixels)
    tower.module.to(dtype)
    found = tower.encode(pixels)
    assert found.dtype == dtype
    error = (found.float() - expected).norm() / expected.norm()
    assert error < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("family", TRAINABLE)
def test_a_saved_tower_is_read_by_timm_and_by_a_reference(backbones: Backbones, family: str, tmp_path: Path):
    tower = tower_of(backbones(family), trained=True)
    weights = {name: value.detach() + 1.0 for name, value in tower.module.named_parameters()}
    tower.save(weights, tmp_path)
    again, model, before = tower_of(f"timm:{tmp_path}"), plain(f"timm:{tmp_path}"), plain(backbones(family))
    assert again._backbone.layout == tower._backbone.layout
    assert {name: value.shape for name, value in again.module.named_parameters()} == {
        name: value.shape for name, value in weights.items()
    }
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights.get(name, before.state_dict()[name])), name
    for name, value in again.module.named_parameters():
        assert torch.equal(value, weights[name]), name


def test_an_untrained_backbone_has_the_sizes_and_not_the_weights(backbones: Backbones):
    torch.manual_seed(5)
    fresh = dict(tower_of(f"{backbones('vit')}@scratch").module.named_parameters())
    torch.manual_seed(5)
    same = dict(tower_of(f"{backbones('vit')}@scratch").module.named_parameters())
    saved = dict(tower_of(backbones("vit")).module.named_parameters())
    assert all(torch.equal(fresh[name], same[name]) for name in fresh)
    assert fresh.keys() == saved.keys()
    assert not torch.equal(fresh["patch_embed.proj.weight"], saved["patch_embed.proj.weight"])


def test_two_streams_of_one_reference_share_nothing(backbones: Backbones):
    same = backbones("vit")
    objective = tiny_model(vision=same, second_stream="timm", second_vision=same).objective
    first, second = objective.tower("vision"), objective.tower("second_stream").encoder
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(p, q) and p.data_ptr() != q.data_ptr() for p, q in pairs)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_second_stream_has_a_learnt_token_for_each_in_front_of_the_first_ones_grid(prefix: int):
    tokens, features = GridTokens(2, 3, prefix=prefix), torch.randn(2, 3, 2, 2)
    found = tokens(features)
    assert found.shape == (2, prefix + 4, 3)
    assert torch.equal(found[:, prefix:], features.flatten(2).transpose(1, 2))
    learnt = dict(tokens.named_parameters())
    assert [value.shape for value in learnt.values()] == ([(1, prefix, 3)] if prefix else [])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pit_ti_224", "gives 1 tokens that are no square grid of cells"),
        ("crossvit_tiny_240", "gives a list of features; expected one tensor of tokens or one map"),
    ],
)
def test_backbones_without_a_grid_are_refused(name: str, reason: str):
    with pytest.raises(ConfigError) as error:
        examine(f"model.vision=timm:{name}", read_reference(f"timm:{name}@scratch"))
    assert str(error.value) == f"model.vision=timm:{name}: {reason}"


def test_inputs_that_are_no_squares_of_three_channels_are_refused(tmp_path: Path):
    for name, size in (("wide", (3, 64, 32)), ("grey", (1, 64, 64))):
        model = timm.create_model("test_resnet", in_chans=size[0])
        timm.models.save_for_hf(model, str(tmp_path / name), safe_serialization=True, data_config={"input_size": size})
        with pytest.raises(ConfigError, match=rf"reads {size[0]} x {size[1]} x {size[2]}; expected 3 channels"):
            examine("model.vision=x", read_reference(f"timm:{tmp_path / name}"))


def test_a_single_cell_is_no_grid(tmp_path: Path):
    reference = write_backbone(tmp_path, "convnext", input_size=(3, 32, 32))
    with pytest.raises(ConfigError, match="gives 1 x 1 cells; expected a square grid of at least 2 x 2"):
        examine("model.vision=x", read_reference(reference))


def test_batch_statistics_are_frozen_or_refused(backbones: Backbones):
    reference = backbones("efficientnet")
    with pytest.raises(ConfigError, match=r"has batch statistics \(\d+ layers, .*; put vision into model\.freeze"):
        tiny_model(vision=reference, fusion=FITTING)
    with pytest.raises(ConfigError, match=r"model\.second_vision=timm:.*; put second_stream into model\.freeze"):
        tiny_model(second_stream="timm", second_vision=reference)
    assert tiny_model(vision=reference, fusion=FITTING, freeze=("vision",)).objective.sight.grid == 2


def test_what_cannot_be_recomputed_says_so(tmp_path: Path):
    model = timm.create_model("convit_tiny", img_size=SIDE, depth=2, local_up_to_layer=1, num_heads=1, embed_dim=24)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    reference = f"timm:{tmp_path}"
    with pytest.raises(ConfigError, match=r"model\.gradient_checkpointing: model\.vision=.* has none; set it to false"):
        tiny_model(vision=reference, fusion=FITTING, gradient_checkpointing=True)
    tiny_model(vision=reference, fusion=FITTING, gradient_checkpointing=True, freeze=("vision",))


@pytest.mark.parametrize("family", ["siglip", "registers", "swin"])
def test_a_heatmap_lies_on_the_cells_whatever_stands_in_front(backbones: Backbones, family: str):
    built = tiny_model(vision=backbones(family), fusion=FITTING)
    viewer = Viewer(built.objective.eval(), built.match_codec, None, GuidanceConfig(block=0))
    found = viewer.look(random_pixels(SIDE), ["is there a red square", "what color"], torch.tensor([0, 1]))
    grid = FAMILIES[family].grid
    assert found.heatmaps.shape == (2, grid, grid)
    assert found.heatmaps.any()


def test_streams_of_other_widths_can_be_summed_up(backbones: Backbones):
    towers = {"vision": backbones("siglip"), "second_stream": "timm", "second_vision": backbones("swin")}
    objective = tiny_model(**towers, fusion={"name": "sum"}).objective
    objective(random_batch((2, 1))).loss.backward()
    assert all(parameter.grad.any() for name, parameter in objective.named_parameters() if "vision" in name)
