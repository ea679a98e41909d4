"""The same questions are drawn at every validation, by the model as it is then."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.build import BuiltModel
from shards.errors import ConfigError
from tests.runs import Project
from trainer.pictures import Pictures, build_pictures
from trainer.recorders import JsonlRecorder, Recorders, TensorBoardRecorder

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


def test_a_picture_that_fails_is_named_once_and_ends_nothing(project: Project, monkeypatch, caplog) -> None:
    pictures, _ = pictures_of(project)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("trainer.pictures.answer_directly", fail)
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
    assert image.height > image.width * 0.9
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
