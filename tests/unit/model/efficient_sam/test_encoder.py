"""EfficientSAM's image encoder: the original's numbers and key names, any precision, any size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.weights import load_efficient_sam_encoder
from shards.errors import ConfigError

GOLDEN = Path(__file__).parents[3] / "golden"
SMALL = EfficientSamEncoderConfig(image_size=64, patch_size=16, width=24, depth=2, heads=3, neck_width=16)


def small_encoder(config=SMALL, **options):
    torch.manual_seed(0)
    return EfficientSamEncoder(config, **options)


def some_images(height=48, width=80):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_original_weights_give_the_original_embeddings():
    encoder = load_efficient_sam_encoder(GOLDEN / "efficient_sam_tiny.weights.safetensors")
    io = load_file(GOLDEN / "efficient_sam_tiny.io.safetensors")
    with torch.no_grad():
        found = encoder(io["images"])
    torch.testing.assert_close(found, io["image_embeddings"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("variant", "parameters"), [("vitt", 6_163_840), ("vits", 22_353_664)])
def test_keys_and_shapes_are_those_of_the_official_checkpoints(variant, parameters):
    official = json.loads((GOLDEN / f"efficient_sam_{variant}.keys.json").read_text())
    with torch.device("meta"):
        encoder = EfficientSamEncoder(EFFICIENT_SAM_CONFIGS[variant])
    own = {f"image_encoder.{name}": list(value.shape) for name, value in encoder.state_dict().items()}
    assert own == {name: shape for name, shape in official.items() if name.startswith("image_encoder.")}
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full_precision(dtype):
    encoder = small_encoder()
    full = encoder(some_images())
    half = encoder.to(dtype)(some_images())
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, atol=0.15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_preprocessing_is_fp32_whatever_the_precision_of_the_encoder(dtype):
    found = small_encoder().to(dtype).preprocess(some_images())
    resized = F.interpolate(some_images(), (64, 64), mode="bilinear", align_corners=False)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(found, (resized - mean) / std, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("image_size", [32, 64, 112, 224])
def test_the_same_weights_serve_every_image_size(image_size):
    encoder = small_encoder(replace(SMALL, image_size=image_size))
    encoder.load_state_dict(small_encoder().state_dict())
    assert encoder(some_images()).shape == (2, 16, image_size // 16, image_size // 16)


def test_positions_are_the_stored_grid_or_its_bicubic_interpolation():
    stored = small_encoder(replace(SMALL, image_size=14 * 16))
    resized = small_encoder(replace(SMALL, image_size=6 * 16))
    grid = stored.pos_embed[:, 1:].reshape(1, 14, 14, 24)
    assert torch.equal(stored._positions(), grid)
    expected = F.interpolate(grid.permute(0, 3, 1, 2), (6, 6), mode="bicubic", align_corners=False)
    assert torch.equal(resized._positions().permute(0, 3, 1, 2), expected)


def test_the_class_slot_of_the_positions_has_no_influence():
    encoder = small_encoder()
    before = encoder(some_images())
    with torch.no_grad():
        encoder.pos_embed[:, 0] = 100.0
    assert torch.equal(encoder(some_images()), before)


def test_every_parameter_receives_a_gradient():
    encoder = small_encoder()
    output = encoder(some_images())
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_checkpointing_changes_neither_output_nor_gradient():
    results = []
    for checkpointing in (False, True):
        encoder = small_encoder(gradient_checkpointing=checkpointing)
        output = encoder(some_images())
        output.square().sum().backward()
        results.append([output, *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("sizes", "named"),
    [({"heads": 5}, "width 24"), ({"image_size": 70}, "nearest below: 64"), ({"depth": 0}, "depth is 0")],
)
def test_sizes_that_cannot_be_are_refused_by_name(sizes, named):
    with pytest.raises(ConfigError, match=named):
        replace(SMALL, **sizes)
