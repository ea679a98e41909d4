"""The same questions are drawn at every validation, by the model as it is then."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.build import BuiltModel
from model.efficient_sam.decoder import MaskDecoderConfig
from model.efficient_sam.encoder import EfficientSamEncoderConfig
from model.efficient_sam.segmenter import Segmenter, SegmenterConfig
from model.efficient_sam.weights import save_segmenter
from shards.errors import ConfigError, UserError
from tests.runs import Project
from trainer.build import build_viewer
from trainer.reporting.recorders import JsonlRecorder, Recorders
from trainer.reporting.tensorboard import TensorBoardRecorder
from trainer.training.pictures import Pictures, build_pictures

TENSORBOARD = "logging.tensorboard=true"
TWO_LAYERS = "model.scratch.text_layers=2"
CPU = torch.device("cpu")


class Album:
    """A recorder that keeps pictures."""

    def __init__(self) -> None:
        self.pictures: dict[tuple[int, str], Image.Image] = {}

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.pictures[step, name] = image


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


def pictures_of(project: Project, *overrides: str) -> tuple[Pictures | None, BuiltModel]:
    given = (TENSORBOARD, TWO_LAYERS, *overrides)
    built = project.model(*given)
    built.objective.eval()
    return build_pictures(project.config(*given), built, CPU), built


def test_every_validation_shows_the_same_questions_with_the_answers_of_that_time(project: Project) -> None:
    pictures, built = pictures_of(project)
    album = Album()
    for step in (5, 6):
        pictures.record(Recorders([album]), step)
    with torch.no_grad():
        for parameter in built.objective.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    pictures.record(Recorders([album]), 7)
    names = {name for _, name in album.pictures}
    assert names == {f"val/question_{number}" for number in (1, 2, 3, 4)}
    for name in names:
        assert album.pictures[5, name].tobytes() == album.pictures[6, name].tobytes()
    assert any(album.pictures[6, name].tobytes() != album.pictures[7, name].tobytes() for name in names)


def test_there_are_no_more_pictures_than_images_or_than_asked_for(project: Project) -> None:
    for asked, shown in ((2, 2), (100, 9)):
        pictures, _ = pictures_of(project, f"logging.pictures={asked}")
        album = Album()
        pictures.record(Recorders([album]), 1)
        assert len(album.pictures) == shown


@pytest.mark.parametrize(
    "override",
    [
        "logging.pictures=0",
        "logging.tensorboard=false",
        "losses.itm=0",
        "model.scratch.text_layers=1",
        "data.val=null",
    ],
)
def test_where_they_cannot_be_drawn_or_seen_there_are_none(project: Project, override: str) -> None:
    assert pictures_of(project, override)[0] is None


def test_a_layer_that_cannot_be_read_is_refused_before_training(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"model\.guidance\.block: 1: the text encoder has 2 layers"):
        pictures_of(project, "model.guidance.block=1")


OFFICIAL_DECODER = SegmenterConfig(
    encoder=EfficientSamEncoderConfig(image_size=32, patch_size=8, width=12, depth=1, heads=2, neck_width=16)
)
SIZES = {"image_size": 32, "patch_size": 8, "width": 12, "depth": 1, "heads": 2, "neck_width": 16}


@pytest.mark.parametrize("stream", ["none", "blip"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a checkpoint", "not a readable weights-only checkpoint"),
        ({"model": {"mask_decoder.x": torch.zeros(1)}}, "sam.pt"),
        (None, "does not say its sizes"),
    ],
    ids=["damaged", "of another model", "of custom sizes that nobody named"],
)
def test_weights_that_training_never_uses_cost_the_masks_and_not_the_run(
    project: Project, tmp_path: Path, caplog, stream: str, content: object, said: str
) -> None:
    """For the commands that need the masks they are still refused."""
    file = tmp_path / "sam.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content or {"model": Segmenter(OFFICIAL_DECODER).state_dict()}, file)
    given = [f"model.second_stream={stream}", f"model.efficient_sam.checkpoint={file}"]
    given += [f"model.efficient_sam.{name}=null" for name in SIZES] if content is None else []
    pictures, built = pictures_of(project, *given)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("no masks: ")
    assert said in warning
    album = Album()
    pictures.record(Recorders([album]), 1)
    assert len(album.pictures) == 4
    with pytest.raises(UserError, match=str(file)):
        build_viewer(project.config(TENSORBOARD, TWO_LAYERS, *given), built, CPU)


@pytest.mark.parametrize("stream", ["none", "efficient_sam"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_masks_come_from_weights_of_the_recipes_own_sizes(
    project: Project, tmp_path: Path, stream: str, suffix: str
) -> None:
    """A .safetensors brings the sizes of its decoder along, other ones than the official."""
    small = MaskDecoderConfig(heads=2, mlp_width=16, upscaling_widths=(4, 2), iou_width=8)
    decoder = OFFICIAL_DECODER.decoder if suffix == "pt" else small
    torch.manual_seed(0)
    original, file = Segmenter(replace(OFFICIAL_DECODER, decoder=decoder)), tmp_path / f"sam.{suffix}"
    if suffix == "pt":
        torch.save({"model": original.state_dict()}, file)
    else:
        save_segmenter(original, file)
    given = [f"model.second_stream={stream}", f"model.efficient_sam.checkpoint={file}"]
    given += [f"model.efficient_sam.{name}={size}" for name, size in (SIZES | {"image_size": 48}).items()]
    built = project.model(TENSORBOARD, TWO_LAYERS, *given)
    viewer = build_viewer(project.config(TENSORBOARD, TWO_LAYERS, *given), built, CPU)
    loaded = viewer._segmenter
    assert loaded.image_encoder.config.image_size == 48
    expected, found = original.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_picture_that_fails_is_named_once_and_ends_nothing(project: Project, monkeypatch, caplog) -> None:
    pictures, _ = pictures_of(project)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("trainer.training.pictures.answer_directly", fail)
    album = Album()
    pictures.record(Recorders([album]), 1)
    pictures.record(Recorders([album]), 2)
    assert [record.message for record in caplog.records] == ["no more pictures: RuntimeError: out of memory"]
    assert album.pictures == {}


def test_tensorboard_shows_them_and_metrics_do_not(project: Project, tmp_path: Path) -> None:
    pictures, _ = pictures_of(project, "logging.pictures=1")
    with Recorders([TensorBoardRecorder(tmp_path / "tb"), JsonlRecorder(tmp_path / "metrics.jsonl")]) as recorders:
        pictures.record(recorders, 3)
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert events.Tags()["images"] == ["val/question_1"]
    (image,) = events.Images("val/question_1")
    assert image.step == 3
    assert image.height > image.width / 2 * 0.9, "the photo twice, and words below"
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
