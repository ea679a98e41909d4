"""Backbones of timm in a recipe: what doctor says of them, what a start checks, and what cannot stand together."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from shards.errors import ConfigError, DataError, UserError
from tests.backbones import write_backbone
from tests.unit.trainer.doctor.recipe_files import loaded
from trainer.cli import main
from trainer.doctor.checkpoints import checkpoint_rows, checkpoint_uses, examine_all, width_row
from trainer.doctor.table import Row
from trainer.training.preflight import _check_references

DINOV2 = "vit_small_patch14_dinov2.lvd142m"
SCRATCH = ("model.match=scratch", "model.answer=scratch", "model.freeze=[]")


def rows_of(recipe: Path, *overrides: str) -> dict[str, Row]:
    config = loaded(recipe, *SCRATCH, *overrides)
    uses = checkpoint_uses(config)
    checkpoints = examine_all(uses)
    rows = [*checkpoint_rows(uses, checkpoints), width_row(config.model, uses, checkpoints)]
    return {row.name: row for row in rows}


def start(recipe: Path, *overrides: str) -> None:
    _check_references(loaded(recipe, *SCRATCH, *overrides).model, ("match", "answer"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_directory_is_described_with_its_tokens_and_fits(recipe: Path, tmp_path: Path):
    reference = write_backbone(tmp_path / "vit", "registers")
    rows = rows_of(recipe, f"model.vision={reference}", "model.fusion.heads=3")
    given = "24 wide, 4 x 4 cells behind 5 tokens, of 56 pixels"
    assert rows["model.vision"] == Row("model.vision", f"{reference}: {given}, in {tmp_path / 'vit'}")
    assert rows["widths"].found.startswith("vision 24, fusion 24")
    faulty = rows_of(recipe, f"model.vision={reference}", "model.fusion.heads=5")
    assert faulty["widths"].fault == "model.fusion.heads: 5 does not divide the width 24; name a divisor"
    start(recipe, f"model.vision={reference}")


@pytest.mark.usefixtures("offline")
def test_what_is_not_in_the_cache_is_named_with_its_command(recipe: Path, tmp_path: Path):
    second = ("model.second_stream=timm", f"model.second_vision=timm:{DINOV2}")
    row = rows_of(recipe, *second)["model.second_vision"]
    command = f"hf download timm/{DINOV2} config.json model.safetensors"
    assert row.fault == f"timm:{DINOV2}: no model.safetensors in the hub cache {tmp_path / 'hub'}; run `{command}`"
    assert row.steps[0] == command
    with pytest.raises(DataError, match=rf"^model\.second_vision=timm:{DINOV2}: .*run `{command}`"):
        start(recipe, *second)
    assert (
        rows_of(recipe, "model.vision=timm:hf-hub:org/vit")["model.vision"].steps[0].startswith("hf download org/vit")
    )


@pytest.mark.usefixtures("offline")
def test_an_untrained_backbone_needs_nothing_and_is_trained(recipe: Path):
    untrained = f"model.vision=timm:{DINOV2}@scratch"
    assert rows_of(recipe, untrained)["model.vision"].fault is None
    start(recipe, untrained)
    with pytest.raises(ConfigError, match="vision starts from random weights and would stay so"):
        loaded(recipe, *SCRATCH, untrained, "model.freeze=[vision]")


@pytest.mark.parametrize("override", ["model.vision=timm:dinov2_small", "model.vision=timm:/nowhere"])
def test_what_is_not_there_is_at_fault_for_both(recipe: Path, override: str):
    row = rows_of(recipe, override)["model.vision"]
    assert row.fault is not None
    with pytest.raises(UserError) as error:
        start(recipe, override)
    assert str(error.value).startswith(override)
    assert row.fault.startswith(override.partition("=")[2])


def test_batch_statistics_are_refused_before_a_start(recipe: Path, tmp_path: Path):
    reference = write_backbone(tmp_path / "efficientnet", "efficientnet")
    with pytest.raises(ConfigError, match="has batch statistics"):
        start(recipe, f"model.vision={reference}")
    start(recipe, f"model.vision={reference}", "model.freeze=[vision]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.match=timm:vit",), "model.match: timm:vit reads no text; expected a checkpoint of transformers"),
        (("model.answer=timm:vit",), "model.answer: timm:vit reads no text"),
        (
            ("model.second_stream=blip", "model.second_vision=timm:vit"),
            "model.second_stream: blip, but model.second_vision is timm:vit; set it to timm",
        ),
        (
            ("model.second_stream=timm", "model.second_vision=org/blip"),
            "model.second_vision: org/blip is no backbone of timm; expected timm:NAME.TAG",
        ),
    ],
)
def test_only_vision_towers_come_from_timm(recipe: Path, overrides: tuple[str, ...], message: str):
    with pytest.raises(ConfigError) as error:
        loaded(recipe, *SCRATCH, *overrides)
    assert message in str(error.value)


@pytest.mark.parametrize("reference", ["timm:vit_tiny_patch99_224", "timm:./nowhere", "timm:crossvit_9_240@scratch"])
def test_a_start_ends_with_one_line_before_anything_is_written(recipe: Path, reference: str, capsys):
    before = sorted(recipe.parent.iterdir())
    overrides = [*SCRATCH, f"model.vision={reference}", "model.efficient_sam.checkpoint=sam.safetensors"]
    assert main(["train", str(recipe), *overrides]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"model.vision={reference}: " in lines[0]
    assert sorted(recipe.parent.iterdir()) == before
