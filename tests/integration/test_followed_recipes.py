"""Somebody with the recipes follows the pages about them: easy-VQA, other streams, adapters, caches, heatmaps.

The recipes are the shipped ones with other sizes in them (tests/shipped.py); every command is the page's own, from its
text.
"""

import shutil
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.pages import SPLITS, follow, reasons_without_command, run_or_named, states
from tests.shipped import IMAGES, write_desk

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGES = ("results", "recipes", "fusion", "features", "heatmap")
"""In this order: the first one packs what `easyvqa` reads, and the page of features trains the run of the last."""
NOT_HERE = {
    "bench step": "minutes",
    "bench answer": "minutes",
    "bench shards": "minutes",
    "recipes/demo_fusion.yaml": "reads the encoders that `make demo` trains",
}
"""What stands in commands that do not run here -> why."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where recipes and checkpoints lie under the names of the pages', and the files of easy-VQA."""
    directory = write_desk(tmp_path_factory.mktemp("recipes"))
    (directory / "easyvqa" / "images").mkdir(parents=True)
    for split, num_images in zip(SPLITS, IMAGES, strict=True):
        own = write_corpus(directory / "easyvqa" / split, num_images=num_images)
        own.questions.rename(directory / "easyvqa" / f"{split}_balanced_questions.json")
        shutil.copytree(own.images, directory / "easyvqa" / "images", dirs_exist_ok=True)
    return directory


@pytest.fixture(scope="module")
def followed(desk: Path) -> dict[str, dict[str, str]]:
    """Page -> command -> what it said."""
    return {page: follow(page, desk, NOT_HERE) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_or_says_why_it_does_not(page: str, followed: dict[str, dict[str, str]]):
    run_or_named(page, followed[page], NOT_HERE)


def test_no_reason_is_left_of_a_command_that_is_gone():
    assert not reasons_without_command(PAGES, NOT_HERE)


@pytest.mark.usefixtures("followed")
def test_every_run_of_the_pages_has_ended_by_itself(desk: Path):
    ended = states(desk)
    assert set(ended) >= {"easyvqa_4", "two_blips", "single_stream", "gqa_blip_lora", "gqa_t5_lora", "gqa_blip_base"}
    assert set(ended.values()) == {"done"}


def test_a_run_behind_a_cache_says_what_it_reads(followed: dict[str, dict[str, str]]):
    assert "fp16" in followed["features"]["train recipes/gqa_blip_base.yaml"]


def test_two_learning_rates_stand_side_by_side(followed: dict[str, dict[str, str]]):
    assert "optim.lr" in followed["recipes"]["runs compare runs/lr_3e-4 runs/lr_1e-3"]
