"""Weight files of the EfficientSAM encoder: strict keys, no pickle run, never half a file, errors that help."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.weights import load_efficient_sam_encoder, save_efficient_sam_encoder
from shards.errors import ConfigError, DataError, UserError

SMALL = EfficientSamEncoderConfig(
    image_size=64, patch_size=16, width=24, depth=1, heads=3, mlp_ratio=2, neck_width=16, pos_grid=4
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return EfficientSamEncoder(SMALL)


def official_state(encoder):
    state = {f"image_encoder.{name}": value for name, value in encoder.state_dict().items()}
    return state | {"prompt_encoder.invalid_points.weight": torch.zeros(1, 16), "mask_decoder.x": torch.zeros(1)}


def write_official(path, state):
    torch.save({"model": state}, path)
    return path


def assert_same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in one.state_dict())


def test_a_saved_encoder_comes_back_with_its_sizes_and_bits(encoder, tmp_path):
    save_efficient_sam_encoder(encoder, tmp_path / "small.safetensors")
    loaded = load_efficient_sam_encoder(tmp_path / "small.safetensors")
    assert loaded.config == SMALL
    assert_same_weights(loaded, encoder)


def test_an_official_checkpoint_loads_without_prompt_encoder_and_mask_decoder(encoder, tmp_path):
    path = write_official(tmp_path / "weights.pt", official_state(encoder))
    assert_same_weights(load_efficient_sam_encoder(path, SMALL), encoder)


def test_image_size_is_free_and_every_other_size_is_the_files(encoder, tmp_path):
    path = tmp_path / "small.safetensors"
    save_efficient_sam_encoder(encoder, path)
    assert load_efficient_sam_encoder(path, replace(SMALL, image_size=128)).config.image_size == 128
    with pytest.raises(ConfigError, match=r"heads 3 \(asked for 6\); only image_size"):
        load_efficient_sam_encoder(path, replace(SMALL, heads=6))


def test_safetensors_without_sizes_need_a_config(encoder, tmp_path):
    path = tmp_path / "converted.safetensors"
    save_file(official_state(encoder), path, metadata={"format": "pt"})
    assert_same_weights(load_efficient_sam_encoder(path, SMALL), encoder)
    with pytest.raises(ConfigError, match="one of vitt, vits"):
        load_efficient_sam_encoder(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("image_encoder.pos_embed"), "missing image_encoder.pos_embed"),
        (lambda state: state.update({"image_encoder.extra": torch.zeros(1)}), "unexpected image_encoder.extra"),
        (lambda state: state.update({"backbone.extra": torch.zeros(1)}), "unexpected backbone.extra"),
        (lambda state: state.update({"image_encoder.neck.1.bias": torch.zeros(3)}), r"neck.1.bias is \(3,\), expected"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(encoder, tmp_path, change, named):
    state = official_state(encoder)
    change(state)
    path = write_official(tmp_path / "weights.pt", state)
    with pytest.raises(DataError, match=named) as error:
        load_efficient_sam_encoder(path, SMALL)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


class Bomb:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickled_program_is_refused_and_not_run(tmp_path):
    path = write_official(tmp_path / "weights.pt", Bomb(tmp_path / "exploded"))
    with pytest.raises(DataError, match=r"weights\.pt: not a readable weights-only checkpoint"):
        load_efficient_sam_encoder(path, SMALL)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights.pt.zip"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name) as error:
        load_efficient_sam_encoder(tmp_path / name, SMALL)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_layout_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="under 'model'"):
        load_efficient_sam_encoder(tmp_path / "weights.pt", SMALL)


@pytest.mark.parametrize(("variant", "sha1"), [("vitt", "af883c49e33c"), ("vits", "fa4e9f05f753")])
def test_a_missing_file_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, variant, sha1):
    path = tmp_path / "absent.pt"
    with pytest.raises(DataError) as error:
        load_efficient_sam_encoder(path, EFFICIENT_SAM_CONFIGS[variant])
    message = str(error.value)
    for part in (str(path), f"weights/efficient_sam_{variant}.pt", "yformer/EfficientSAM", "git hash-object", sha1):
        assert part in message
    assert "\n" not in message


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(encoder, tmp_path, monkeypatch):
    path = tmp_path / "small.safetensors"
    save_efficient_sam_encoder(encoder, path)
    before = path.read_bytes()

    def full_disk(_descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with torch.no_grad():
        encoder.pos_embed.zero_()
    with pytest.raises(OSError, match="no space"):
        save_efficient_sam_encoder(encoder, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.safetensors"]


def test_an_encoder_is_not_written_under_another_ending(encoder, tmp_path):
    with pytest.raises(UserError, match="safetensors"):
        save_efficient_sam_encoder(encoder, tmp_path / "small.pt")
