"""Weight files of a whole segmenter: sizes in the metadata, strict keys, a shared image encoder, errors that help."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.efficient_sam.decoder import MaskDecoderConfig
from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.segmenter import SEGMENTER_CONFIGS, Segmenter, SegmenterConfig
from model.efficient_sam.weights import (
    load_efficient_sam_encoder,
    load_segmenter,
    save_efficient_sam_encoder,
    save_segmenter,
)
from shards.errors import ConfigError, DataError, UserError

GOLDEN = Path(__file__).parents[3] / "golden"
ENCODER = EfficientSamEncoderConfig(
    image_size=64, patch_size=16, width=24, depth=1, heads=3, mlp_ratio=2, neck_width=16, pos_grid=4
)
SMALL = SegmenterConfig(
    encoder=ENCODER,
    decoder=MaskDecoderConfig(heads=2, mlp_width=24, upscaling_widths=(8, 4), iou_width=12),
    max_points=4,
)


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return Segmenter(SMALL)


def write_official(path, state):
    torch.save({"model": state}, path)
    return path


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_saved_segmenter_comes_back_with_its_sizes_and_bits(segmenter, tmp_path):
    save_segmenter(segmenter, tmp_path / "whole.safetensors")
    loaded = load_segmenter(tmp_path / "whole.safetensors")
    assert loaded.config == SMALL
    assert_same_tensors(loaded.state_dict(), segmenter.state_dict())
    assert_same_tensors(
        load_efficient_sam_encoder(tmp_path / "whole.safetensors").state_dict(), segmenter.image_encoder.state_dict()
    )


def test_the_sizes_of_the_original_are_read_from_its_metadata():
    loaded = load_segmenter(GOLDEN / "efficient_sam_tiny.weights.safetensors")
    assert loaded.config == SegmenterConfig(
        encoder=EfficientSamEncoderConfig(image_size=128, width=48, depth=3, heads=3, neck_width=32),
        decoder=MaskDecoderConfig(heads=4, mlp_width=64, upscaling_widths=(16, 8), iou_width=32),
    )
    stored = load_file(GOLDEN / "efficient_sam_tiny.weights.safetensors")
    assert_same_tensors(loaded.state_dict(), stored)


@pytest.mark.parametrize("variant", ["vitt", "vits"])
def test_an_official_checkpoint_loads_whole(variant, tmp_path):
    shapes = json.loads((GOLDEN / f"efficient_sam_{variant}.keys.json").read_text())
    state = {name: torch.tensor(float(index)).expand(shape) for index, (name, shape) in enumerate(shapes.items())}
    path = write_official(tmp_path / "weights.pt", state)
    assert_same_tensors(load_segmenter(path, SEGMENTER_CONFIGS[variant]).state_dict(), state)


def test_a_given_image_encoder_is_shared_and_keeps_its_weights_and_precision(segmenter, tmp_path):
    path = write_official(tmp_path / "weights.pt", segmenter.state_dict())
    sizes = replace(SMALL, encoder=EFFICIENT_SAM_CONFIGS["vitt"])
    shared = EfficientSamEncoder(ENCODER).bfloat16()
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    loaded = load_segmenter(path, sizes, image_encoder=shared)
    assert loaded.image_encoder is shared
    assert_same_tensors(shared.state_dict(), before)
    assert_same_tensors(loaded.mask_decoder.state_dict(), segmenter.mask_decoder.state_dict())
    assert_same_tensors(loaded.prompt_encoder.state_dict(), segmenter.prompt_encoder.state_dict())


def test_a_given_image_encoder_of_other_sizes_than_the_file_is_refused(segmenter, tmp_path):
    save_segmenter(segmenter, tmp_path / "whole.safetensors")
    path = write_official(tmp_path / "weights.pt", segmenter.state_dict())
    other = EfficientSamEncoder(replace(ENCODER, width=36))
    with pytest.raises(ConfigError, match=r"width 24 \(asked for 36\); only image_size"):
        load_segmenter(tmp_path / "whole.safetensors", image_encoder=other)
    with pytest.raises(DataError, match=r"image_encoder\.\S+ is .*, expected"):
        load_segmenter(path, SMALL, image_encoder=other)


def test_a_file_with_an_image_encoder_alone_is_no_segmenter(segmenter, tmp_path):
    save_efficient_sam_encoder(segmenter.image_encoder, tmp_path / "small.safetensors")
    with pytest.raises(DataError, match="holds an image encoder alone") as error:
        load_segmenter(tmp_path / "small.safetensors")
    assert str(tmp_path / "small.safetensors") in str(error.value)
    assert "efficient_sam_vitt.pt" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (replace(SMALL, max_points=6), r"max_points 4 \(asked for 6\)"),
        (replace(SMALL, decoder=replace(SMALL.decoder, heads=4)), r"heads 2 \(asked for 4\)"),
        (replace(SMALL, encoder=replace(ENCODER, depth=2)), r"depth 1 \(asked for 2\)"),
    ],
)
def test_only_the_image_size_of_a_saved_segmenter_is_free(segmenter, tmp_path, asked, named):
    path = tmp_path / "whole.safetensors"
    save_segmenter(segmenter, path)
    larger = replace(SMALL, encoder=replace(ENCODER, image_size=128))
    assert load_segmenter(path, larger).prompt_encoder.image_size == 128
    with pytest.raises(ConfigError, match=named) as error:
        load_segmenter(path, asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("mask_decoder.iou_token.weight"), "missing mask_decoder.iou_token.weight"),
        (lambda state: state.update({"mask_decoder.extra": torch.zeros(1)}), "unexpected mask_decoder.extra"),
        (lambda state: state.pop("image_encoder.pos_embed"), "missing image_encoder.pos_embed"),
        (
            lambda state: state.update({"prompt_encoder.point_embeddings.weight": torch.zeros(1, 3)}),
            r"point_embeddings.weight is \(1, 3\), expected \(1, 16\)",
        ),
    ],
)
def test_a_segmenter_that_does_not_fit_is_refused_by_name(segmenter, tmp_path, change, named):
    state = segmenter.state_dict()
    change(state)
    path = write_official(tmp_path / "weights.pt", state)
    with pytest.raises(DataError, match=named) as error:
        load_segmenter(path, SMALL)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_segmenter_without_sizes_needs_them(segmenter, tmp_path):
    path = write_official(tmp_path / "weights.pt", segmenter.state_dict())
    with pytest.raises(ConfigError, match="does not say its sizes; name them: one of vitt, vits"):
        load_segmenter(path)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [({"max_points": None}, "max_points"), ({"decoder_num_heads": "two"}, "two"), ({"decoder_depth": "0"}, "depth")],
)
def test_metadata_without_the_sizes_of_a_segmenter_is_refused_by_name(segmenter, tmp_path, metadata, named):
    path = tmp_path / "whole.safetensors"
    save_segmenter(segmenter, path)
    with safe_open(path, "pt") as file:
        given = {name: value for name, value in (file.metadata() | metadata).items() if value is not None}
    save_file(segmenter.state_dict(), path, metadata=given)
    with pytest.raises(DataError, match=f"does not give the sizes of a segmenter .*{named}") as error:
        load_segmenter(path)
    assert str(path) in str(error.value)


def test_a_missing_segmenter_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"efficient_sam_vits\.pt\.zip.*git hash-object.*fa4e9f05f753"):
        load_segmenter(tmp_path / "absent.pt", SEGMENTER_CONFIGS["vits"])


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_damaged_segmenter_is_named_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=name) as error:
        load_segmenter(tmp_path / name, SMALL)
    assert "\n" not in str(error.value)


def test_a_segmenter_is_not_written_under_another_ending(segmenter, tmp_path):
    with pytest.raises(UserError, match=r"a segmenter is written as \.safetensors"):
        save_segmenter(segmenter, tmp_path / "whole.pt")
