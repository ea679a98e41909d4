"""The rows of the comparison, the encoder that knows no colors, and the plot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import outlines, second_stream
from benchmarks.bars import draw_bars
from benchmarks.second_stream import OWN_RECIPE, Pair
from model.config import ModelConfig
from model.efficient_sam.weights import load_efficient_sam_encoder
from shards.build.writer import build_shards
from shards.scenes.color_and_detail import COLORS, GROUND, Thing, color_and_detail_files, draw
from tests.models import tiny_model
from trainer.config import load_config
from trainer.config.schema import REPOSITORY


def models(first: str, second: str) -> dict[str, ModelConfig]:
    rows = Pair(OWN_RECIPE, first, second, ()).rows()
    return {row: load_config(REPOSITORY / OWN_RECIPE, overrides).model for row, overrides in rows.items()}


def test_each_encoder_is_there_alone_and_both_in_every_fusion():
    found = models("some/blip", "efficient_sam")
    assert (found["first alone"].vision, found["first alone"].second_stream) == ("some/blip", "none")
    assert (found["second alone"].vision, found["second alone"].second_stream) == ("efficient_sam", "none")
    both = {row: found[row] for row in ("sum", "concatenation", "difnet")}
    assert {(model.vision, model.second_stream) for model in both.values()} == {("some/blip", "efficient_sam")}
    assert [model.fusion.name for model in both.values()] == ["difnet", "concatenation", "difnet"]
    assert (both["sum"].fusion.separate_layers, both["difnet"].fusion.separate_layers) == (0, 1)
    assert len({(model.fusion.width, model.fusion.layers, model.freeze) for model in found.values()}) == 1


@pytest.mark.parametrize(("second", "stream"), [("timm:vit_tiny_patch16_224", "timm"), ("some/other-blip", "blip")])
def test_encoders_of_ones_own_are_named_as_recipes_name_them(second: str, stream: str):
    found = models("timm:resnet18", second)
    assert found["second alone"].vision == second
    assert (found["sum"].second_stream, found["sum"].second_vision) == (stream, second)


@pytest.mark.parametrize(
    ("words", "encoders", "trains"),
    [
        ([], ("second_stream_first/export/blip_vqa", "efficient_sam"), {"second_stream_first", "outlines"}),
        (["--a", "timm:resnet18", "--b", "efficient_sam"], ("timm:resnet18", "efficient_sam"), {"outlines"}),
        (["--a", "timm:resnet18", "--b", "some/blip"], ("timm:resnet18", "some/blip"), set()),
        (["--recipe", "R.yaml", "--a", "timm:resnet18", "--b", "some/blip"], ("timm:resnet18", "some/blip"), None),
    ],
)
def test_encoders_without_a_recipe_are_asked_about_pictures_of_the_seed(
    words: list[str],
    encoders: tuple[str, str],
    trains: set[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    ran, trained = [], set()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(second_stream, "_run", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr(second_stream, "train_outlines", lambda *_: trained.add("outlines") or 1.0)
    monkeypatch.setattr(second_stream, "_measure", lambda pair, *_: measured.append(pair) or {"difnet": {"all": 1.0}})
    measured: list[Pair] = []
    monkeypatch.setattr("sys.argv", ["second_stream", *words, "--seeds", "2"])
    assert second_stream.main() == 0
    (pair,) = measured
    assert (pair.first.removeprefix("second_stream/seed2/runs/"), pair.second) == encoders
    if trains is None:
        assert (pair.recipe, ran) == ("R.yaml", [])
        assert not any(word.startswith("data.") for word in pair.overrides)
        return
    trained |= {Path(arguments[1]).stem for arguments in ran if arguments[0] == "train"}
    assert trained == trains
    assert {"data.train=second_stream/seed2/shards/train", "run.seed=2"} <= set(pair.overrides)
    outlines_named = "model.efficient_sam.checkpoint=second_stream/seed2/outlines.safetensors" in pair.overrides
    assert outlines_named == ("outlines" in trains)


def test_fusions_have_as_many_parameters_within_a_tenth():
    """The linear map in front of a concatenation is what it has more; private norms are what DIFNet has more."""
    sizes = {"width": 24, "layers": 3, "heads": 2, "ffn_width": 96}
    kinds = {"difnet": {}, "sum": {"separate_layers": 0}, "concatenation": {"name": "concatenation"}}
    counts = {
        kind: sum(
            parameter.numel()
            for name, parameter in tiny_model(
                fusion={"name": "difnet", "separate_layers": 1, "repeats": 1, **sizes, **changes}
            ).objective.named_parameters()
            if name.startswith("fusion.")
        )
        for kind, changes in kinds.items()
    }
    assert max(counts.values()) < 1.1 * min(counts.values()), counts


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    for path, content in color_and_detail_files(num_images=20, seed=1):
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_bytes(content)
    build_shards(
        format="gqa",
        questions=[directory / "first_questions.json"],
        images=directory / "images",
        out=directory / "shards",
    )
    return directory / "shards"


def test_no_color_reaches_the_encoder_of_outlines(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outlines, "STEPS", 12)
    right = outlines.train_outlines(shards, GROUND, 1, tmp_path / "outlines.safetensors")
    assert 0.5 < right <= 1.0
    encoder = load_efficient_sam_encoder(tmp_path / "outlines.safetensors").eval()

    def seen(color: str, shape: str) -> torch.Tensor:
        pixels = torch.from_numpy(draw((Thing(shape, color, 100, (30, 30)),))).permute(2, 0, 1)[None]
        with torch.no_grad():
            return encoder(pixels.float() / 255)

    red = seen("red", "ring")
    for color in COLORS:
        torch.testing.assert_close(seen(color, "ring"), red, atol=1e-4, rtol=1e-4)
    assert (seen("red", "cross") - red).abs().max() > 0.1


def test_bars_stand_as_high_as_the_percents_are(tmp_path: Path):
    draw_bars(tmp_path / "bars.png", {"one": {"a": 100.0, "b": 50.0}, "two": {"a": 25.0, "b": 0.0}})
    pixels = np.asarray(Image.open(tmp_path / "bars.png"))
    first = (pixels == (0x9A, 0xA5, 0xB1)).all(axis=-1)
    heights = sorted(set(first[: 60 + 260 + 1].sum(axis=0)) - {0})
    assert heights[0] == pytest.approx(131, abs=2)
    assert heights[-1] == pytest.approx(261, abs=2)
