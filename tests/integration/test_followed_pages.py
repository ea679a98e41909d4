"""Somebody with GQA's files follows its page, and then the pages about what a run leaves, command by command.

The files are those of scenes that are rendered here, and the recipe that the pages name is one of a few thousand
parameters; every command is the page's own, from its text.
"""

import contextlib
import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.models import EFFICIENT_SAM, FUSION, SCRATCH
from tests.pages import SPLITS, duoflow, follow, reasons_without_command, run_or_named
from tests.runs import write_recipe

pytestmark = pytest.mark.integration

PAGES = ("gqa", "order", "checkpoints", "export", "report", "watching", "troubleshooting")
"""In this order: the first one trains the run that the others are about."""
NOT_HERE = {
    "doctor recipes/gqa_blip_base.yaml": "two files of this recipe are not what it asks for; test_doctor has it",
    "bench step": "minutes",
    "--hostfile": "asks hosts by ssh; tests/multinode has it",
    "launch k8s": "prints a manifest; tests/unit/launch has it",
    "--pipeline pnp": "reads a captioner and T5; test_answer has it",
    "runs/gqa_blip_lora": "adapters in frozen checkpoints; test_answer merges them",
}
"""What stands in commands that do not run here -> why."""
if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
    NOT_HERE["--onnx"] = "the extra [onnx]"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the page of GQA has downloaded, and a small recipe in the place of its own."""
    directory = tmp_path_factory.mktemp("gqa")
    duoflow(["scenes", "rendered", "--images", "60", "--seed", "3"], directory)
    rendered = directory / "rendered"
    rendered.rename(directory / "questions")
    (directory / "questions" / "images").rename(directory / "images")
    (directory / "recipes").mkdir()
    write_recipe(
        directory / "recipes" / "gqa_blip_base.yaml",
        {split: f"data/gqa/{split}" for split in SPLITS},
        run={"directory": "runs", "name": "gqa_blip_base", "seed": 3},
        limits={"epochs": 1},
        model={"scratch": SCRATCH, "efficient_sam": EFFICIENT_SAM, "fusion": FUSION, "freeze": []},
    )
    shutil.copy(next((directory / "images").iterdir()), directory / "photo.jpg")
    return directory


@pytest.fixture(scope="module")
def followed(desk: Path) -> dict[str, dict[str, str]]:
    """Page -> command -> what it said."""
    said: dict[str, dict[str, str]] = {}
    for page in PAGES:
        said[page] = follow(page, desk, NOT_HERE)
        if page == "gqa":
            _lay_out(desk)
    return said


def _lay_out(desk: Path) -> None:
    """What the pages behind GQA's call by other names."""
    (desk / "runs" / "my_run").symlink_to("gqa_blip_base")
    (desk / "photos").symlink_to("images")
    (desk / "my_run").mkdir()
    (desk / "my_run" / "shards").symlink_to(desk / "data" / "gqa")
    names = sorted(path.name for path in (desk / "images").iterdir())[:3]
    rows = ["image,question", *(f"{name},Is there a circle?" for name in names)]
    (desk / "asked.csv").write_text("\n".join(rows) + "\n")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(desk / "exported")


def test_the_page_of_gqa_leads_from_its_files_to_a_score(followed: dict[str, dict[str, str]], desk: Path):
    said = followed["gqa"]
    assert len([command for command in said if command.startswith("shards build")]) == 3
    scored = next(text for command, text in said.items() if command.startswith("score"))
    measured = said["evaluate runs/gqa_blip_base --split testdev"]
    accuracy = next(line.split()[1] for line in measured.splitlines() if line.startswith("testdev/accuracy "))
    assert f"{100 * float(accuracy):.1f}" in scored or accuracy in scored
    assert (desk / "out.png").is_file()
    assert (desk / "exported" / "fusion_encoder.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_or_says_why_it_does_not(page: str, followed: dict[str, dict[str, str]]):
    run_or_named(page, followed[page], NOT_HERE)


def test_no_reason_is_left_of_a_command_that_is_gone():
    assert not reasons_without_command(PAGES, NOT_HERE)


def test_a_run_that_is_done_says_so_and_fresh_sets_it_aside(followed: dict[str, dict[str, str]], desk: Path):
    said = followed["checkpoints"]
    assert "is finished at step" in said["train recipes/gqa_blip_base.yaml"]
    assert "the old run is now runs/gqa_blip_base.1" in said["train recipes/gqa_blip_base.yaml --fresh"]
    assert (desk / "runs" / "gqa_blip_base.1").is_dir()


def test_the_table_of_asked_questions_has_an_answer_in_each_row(followed: dict[str, dict[str, str]], desk: Path):
    assert followed["report"]
    lines = (desk / "answered.csv").read_text().splitlines()
    assert len(lines) == 4
    assert all(len(line.split(",")) == 4 for line in lines)
