"""Somebody with ten photos and a spreadsheet follows docs/own_data.md: every command of the page, as it stands."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.unit.test_documented_commands import commands
from trainer import cli

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
IN_SECONDS = ("limits.max_steps=4", "logging.tensorboard=false")
"""Behind each command that trains: whether something is learnt is not what is asked here."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """Where photos/ and rows.csv of the page lie."""
    directory = tmp_path_factory.mktemp("own_data")
    (directory / "photos").mkdir()
    rows = ["image,question,answer"]
    for number in range(1, 11):
        color, shape = ("red", "blue")[number % 2], ("circle", "square")[number % 3 == 0]
        drawn = Image.new("RGB", (320, 240), (230, 225, 215))
        draw = ImageDraw.Draw(drawn)
        (draw.ellipse if shape == "circle" else draw.rectangle)((60 + 9 * number, 60, 170 + 9 * number, 170), fill=color)
        drawn.save(directory / "photos" / f"{number:02}.jpg")
        rows.append(f"{number:02}.jpg,What colour is the thing?,{color.capitalize()}")
        rows.append(f"{number:02}.jpg,Is there a circle?,{'yes' if shape == 'circle' else 'no'}")
    (directory / "rows.csv").write_text("\n".join(rows) + "\n")
    return directory


def test_every_command_of_the_page_runs_where_the_page_puts_it(desk: Path, monkeypatch, capfd):
    monkeypatch.chdir(desk)
    said = {}
    for words in commands(PAGE.read_text(encoding="utf-8")):
        trains = words[0] == "train" and "--dry-run" not in words
        assert cli.main([*words, *(IN_SECONDS if trains else ())]) == 0, capfd.readouterr().err
        said[shlex.join(words)] = capfd.readouterr().out
    assert "2 with 4 in my_run/shards/val" in said["init my_run --images photos --questions rows.csv"]
    trained, evaluated = said["train my_run.yaml"], said["evaluate runs/my_run --split val"]
    for shown in (trained, evaluated):
        assert "the most frequent answer of training" in shown
        assert "the question alone: the most frequent answer to its words" in shown
        assert "this model" in shown
    assert "val/question_only_accuracy" in evaluated
    assert said["runs"].split()[: len(["run", "state", "step", "best"])] == ["run", "state", "step", "best"]
    assert "optim.lr" in said["runs compare runs/my_run runs/slower"]


def test_an_image_is_in_one_split_alone(desk: Path):
    rows = {
        split: {json.loads(line)["image"] for line in (desk / f"my_run/questions/{split}.jsonl").open()}
        for split in ("train", "val")
    }
    assert rows["train"].isdisjoint(rows["val"])
    assert len(rows["train"] | rows["val"]) == 10
