"""Somebody with ten photos and a spreadsheet follows docs/own_data.md, the quick start and README, and then tries what
each help screen shows."""

import contextlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.pages import duoflow, follow, page_commands
from tests.unit.trainer.test_command_line import EXAMPLES
from trainer.config.schema import REPOSITORY

pytestmark = pytest.mark.integration

PAGES = ("own_data", "index", "README")
"""The last two show the same way: what they have beside the first one goes on where it ends."""
IN_SECONDS = ("limits.max_steps=4", "logging.tensorboard=false")
"""Behind each command that trains: whether something is learnt is not what is asked here."""
NOT_HERE = {
    "duoflow init": "the page has run it, and a recipe is never overwritten",
    "duoflow train my_run.yaml": "the page has run it",
    "duoflow train recipes/easyvqa.yaml optim.lr=3e-5": "goes on behind this test; test_watching has it",
    "duoflow launch hostfile": "asks hosts by ssh; test_launch has it",
    "duoflow score": "takes a task's own files; test_score has it",
    "duoflow features cache": "keeps tokens of frozen encoders, and nothing is frozen here; test_features has it",
    "duoflow serve": "answers until Ctrl-C; test_serve_and_report has it",
    "duoflow bench step": "minutes",
    "duoflow bench answer": "minutes",
    "duoflow bench vlm": "minutes",
    "duoflow bench overhead": "minutes",
    "duoflow bench memory": "minutes",
    "duoflow bench scaling": "minutes",
    "duoflow bench all": "minutes",
}
"""Beginnings of examples -> why they do not run here."""


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
        (draw.ellipse if shape == "circle" else draw.rectangle)((9 * number, 60, 110 + 9 * number, 170), fill=color)
        drawn.save(directory / "photos" / f"{number:02}.jpg")
        rows.append(f"{number:02}.jpg,What colour is the thing?,{color.capitalize()}")
        rows.append(f"{number:02}.jpg,Is there a circle?,{'yes' if shape == 'circle' else 'no'}")
    (directory / "rows.csv").write_text("\n".join(rows) + "\n")
    return directory


@pytest.fixture(scope="module")
def followed(desk: Path) -> dict[str, str]:
    """What each command of the pages says, in their order."""
    said: dict[str, str] = {}
    for page in PAGES:
        said |= follow(page, desk, {}, behind=IN_SECONDS, already=said)
    return said


def test_the_page_leads_to_a_model_whose_accuracy_stands_beside_its_baselines(followed: dict[str, str]):
    assert "2 with 4 in my_run/shards/val" in followed["init my_run --images photos --questions rows.csv"]
    trained, evaluated = followed["train my_run.yaml"], followed["evaluate runs/my_run --split val"]
    for shown in (trained, evaluated):
        assert "the most frequent answer of training" in shown
        assert "the question alone: the most frequent answer to its words" in shown
        assert "this model" in shown
    assert "val/question_only_accuracy" in evaluated
    assert followed["runs"].split()[:4] == ["run", "state", "step", "best"]
    assert "optim.lr" in followed["runs compare runs/my_run runs/slower"]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_has_run(page: str, followed: dict[str, str]):
    assert {shlex.join(words) for words in page_commands(page)} <= set(followed)


@pytest.mark.usefixtures("followed")
def test_an_image_is_in_one_split_alone(desk: Path):
    rows = {}
    for split in ("train", "val"):
        lines = (desk / f"my_run/questions/{split}.jsonl").read_text().splitlines()
        rows[split] = {json.loads(line)["image"] for line in lines}
    assert rows["train"].isdisjoint(rows["val"])
    assert len(rows["train"] | rows["val"]) == 10


@pytest.mark.usefixtures("followed")
def test_the_page_of_the_run_directory_has_every_file(desk: Path):
    text = (REPOSITORY / "docs" / "run_directory.md").read_text(encoding="utf-8")
    named = [re.sub(r"\bSPLIT\b", "val", name) for name in re.findall(r"`([\w./*]+)`", text)]
    named = [re.escape(re.sub(r"N{8}", "*", name)).replace(r"\*", "[^/]*") for name in named]
    run = desk / "runs" / "my_run"
    for file in (str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()):
        assert any(re.fullmatch(name + (".*" if name.endswith("/") else ""), file) for name in named), file


@pytest.mark.usefixtures("followed")
def test_the_page_of_metrics_has_every_name_that_a_run_writes(desk: Path):
    text = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/@]+)`", text))
    lines = (desk / "runs" / "my_run" / "metrics.jsonl").read_text().splitlines()
    written = set().union(*map(json.loads, lines))
    assert not {name for name in written if not {name, name.removesuffix("/count")} & named}


@pytest.mark.usefixtures("followed")
def test_a_run_answers_from_anywhere(desk: Path, tmp_path: Path):
    assert "val/accuracy" in duoflow(["evaluate", str(desk / "runs/my_run"), "--split", "val"], tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize("line", dict.fromkeys(EXAMPLES))
def test_what_a_help_screen_shows_runs(desk: Path, line: str):
    for beginning, why in NOT_HERE.items():
        if line.startswith(beginning):
            pytest.skip(why)
    _lay_out(desk)
    duoflow(shlex.split(line)[1:], desk)


def _lay_out(desk: Path) -> None:
    """Put what was made where the examples look for it; what they make goes."""
    (desk / "recipes").mkdir(exist_ok=True)
    shutil.copy(desk / "my_run.yaml", desk / "recipes" / "easyvqa.yaml")
    shutil.copy(REPOSITORY / "recipes" / "gqa_blip_base.yaml", desk / "recipes")
    (desk / "data" / "easyvqa").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (desk / "data" / "easyvqa" / "train").symlink_to(desk / "my_run" / "shards" / "train")
    shutil.rmtree(desk / "exported", ignore_errors=True)
