"""What is wrong with a reference to timm is one line that says where, what, and the way out."""

import json
import re
import sys
from pathlib import Path

import pytest
import timm
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from model.references import read_reference
from model.towers.timm_backbone import examine, load_backbone
from model.towers.timm_files import check_name, fetch, find_weights
from shards.errors import ConfigError, DataError, UserError
from tests.backbones import write_backbone

DINOV2 = "vit_small_patch14_dinov2"


def said(text: str) -> str:
    """What is said of a reference whose weights are needed, without what it begins with."""
    with pytest.raises(UserError) as error:
        load_backbone(examine("KEY", read_reference(text)), trained=False, checkpointing=False)
    message = str(error.value)
    assert message.startswith("KEY: ")
    assert "\n" not in message
    return message.removeprefix("KEY: ")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and a cache of the hub in which nothing lies; torch's own cache too."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def cached(home: Path, repository: str, directory: Path) -> Path:
    """Puts the files of a directory into the hub's cache; gives their place."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    return directory.rename(place / "snapshots" / commit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:vit_small_patch14_dinov3", r"has no backbone vit_small_patch14_dinov3; did you mean vit_small_\w+\?"),
        (f"timm:{DINOV2}.lvd142", rf"no weights lvd142 of {DINOV2}; did you mean lvd142m\?; its tags: lvd142m"),
        (f"timm:{DINOV2}@main", rf"has no backbone {DINOV2}@main; did you mean {DINOV2}\?"),
        ("timm:facebook/dinov2", r"has no backbone facebook/dinov2.*; a hub id is written timm:hf-hub:OWNER/NAME"),
        ("timm:", r"has no backbone \(no name\)"),
        ("timm:hf-hub:no hub id", r"no hub id is no hub id \(OWNER/NAME or OWNER/NAME@REVISION\)"),
    ],
)
def test_what_timm_does_not_know_is_named_with_what_is_near(text: str, message: str):
    assert re.search(message, said(text))


def test_a_backbone_that_has_no_weights_can_only_be_trained():
    name = next(name for name in timm.list_models() if not timm.list_pretrained(f"{name}.*"))
    assert said(f"timm:{name}") == f"timm has no weights of {name}; write timm:{name}@scratch to train it"


@pytest.mark.parametrize("scheme", ["", "local-dir:"])
def test_directories_that_are_none_of_timms_are_named(tmp_path: Path, scheme: str):
    expected = "expected a directory that timm.models.save_for_hf wrote (config.json and model.safetensors)"
    gone, reference = tmp_path / "gone", f"timm:{scheme}{tmp_path}"
    assert said(f"timm:{scheme}{gone}") == f"{gone} is no directory; {expected}"
    assert said(reference) == f"{tmp_path} has no config.json; {expected}"
    (tmp_path / "config.json").write_text("{")
    assert said(reference).startswith(f"{tmp_path / 'config.json'}: damaged (")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BlipForQuestionAnswering"]}))
    assert said(reference) == f"{tmp_path / 'config.json'}: names no architecture of timm; {expected}"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch99"}))
    assert "names the architecture vit_tiny_patch99, which timm" in said(reference)
    assert "did you mean vit_tiny_patch" in said(reference)


def test_weights_that_are_missing_damaged_or_of_other_sizes_are_named(tmp_path: Path):
    reference, file = write_backbone(tmp_path, "vit"), tmp_path / "model.safetensors"
    whole = file.read_bytes()
    state = {name: value.clone() for name, value in load_file(file).items()}  # of no file that is written over
    file.write_bytes(whole[: len(whole) // 2])
    assert said(reference).startswith(f"{file} is damaged; expected a directory")
    file.unlink()
    assert said(reference).startswith(f"{tmp_path} has no weights (model.safetensors or pytorch_model.bin); expected")
    save_file({name: value for name, value in state.items() if "blocks.1" not in name}, file)
    assert said(reference).startswith("weights do not load (RuntimeError: Error(s) in loading state_dict for VisionTr")
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["colour"] = "red"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert said(reference).startswith("cannot be built (TypeError: ")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (f"timm:{DINOV2}.lvd142m", f"hf download timm/{DINOV2}.lvd142m config.json model.safetensors"),
        (f"timm:{DINOV2}", f"hf download timm/{DINOV2}.lvd142m config.json model.safetensors"),
        ("timm:hf-hub:org/tower@abc", "hf download org/tower config.json model.safetensors --revision abc"),
        (
            "timm:gcvit_tiny.in1k",
            "curl -L --create-dirs -o {torch}/hub/checkpoints/gcvit_tiny_224_nvidia-ac783954.pth https://github.com/"
            "rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit/gcvit_tiny_224_nvidia-ac783954.pth",
        ),
    ],
)
def test_without_a_network_the_command_that_fetches_is_named(offline: Path, text: str, command: str):
    command = command.format(torch=offline / "torch")
    with pytest.raises(DataError) as error:
        fetch("KEY", read_reference(text))
    assert f"and not to be fetched (HF_HUB_OFFLINE=1); run `{command}` on a machine with a network" in str(error.value)
    assert find_weights("KEY", read_reference(text)).steps[0] == command


@pytest.mark.usefixtures("offline")
def test_a_network_that_fails_is_the_reason(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("model.towers.timm_files.hf_hub_download", unreachable)
    with pytest.raises(DataError, match=r"not to be fetched \(no route to host\); run `hf download timm/"):
        fetch("KEY", read_reference(f"timm:{DINOV2}.lvd142m"))


def test_what_lies_in_the_cache_needs_no_network(offline: Path):
    write_backbone(offline / "files", "dinov2")
    place = cached(offline, "org/tower", offline / "files")
    read = read_reference("timm:hf-hub:org/tower")
    found = find_weights("KEY", read)
    assert (found.place, found.missing) == (f"hub cache, revision {place.name}, {place}", None)
    fetch("KEY", read)
    (place / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"model\.safetensors is damaged; fetch it again: `hf download org/tower .*--f"):
        fetch("KEY", read)
    (place / "model.safetensors").unlink()
    assert find_weights("KEY", read).missing == f"no model.safetensors in the hub cache {offline / 'hub'}"
    assert find_weights("KEY", read_reference("timm:hf-hub:org/tower@scratch")).missing is None


@pytest.mark.usefixtures("offline")
def test_an_untrained_one_needs_no_files():
    read = read_reference(f"timm:{DINOV2}@scratch")
    fetch("KEY", read)
    assert find_weights("KEY", read).place == f"timm {timm.__version__}"


def test_a_missing_timm_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm: the package timm cannot be imported \(.*\); run `pip install timm`"):
        check_name("KEY", read_reference(f"timm:{DINOV2}"))
