"""Somebody with MP-DocVQA's files follows the pages of documents, of retrieval and of vision-language models.

The files are small and written by code, the checkpoints are small and random, and lie under the names that the pages
give them; every command is the page's own, from its text.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.documents import imdb_records, shared_vlm, write_imdb, write_mpdocvqa
from tests.official import Official
from tests.pages import SPLITS, duoflow, follow, page_commands, reasons_without_command, run_or_named
from tests.reader import SECTIONS, shared_t5
from tests.retrieval import shared_checkpoint
from tests.runs import write_recipe
from tests.task_corpora import write_gqa

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGES = ("documents", "retrieval", "vlm")
"""In this order: the second one goes on with what the first has packed and trained."""
NOT_HERE = {"bench vlm": "minutes"}
"""What stands in commands that do not run here -> why."""
SAMPLES = {"train": 10, "val": 24}
"""Documents; the last one of val is the one that the page asks about."""


def place_documents(desk: Path) -> None:
    """The official files of two splits, their words, and a results file of a system."""
    (desk / "images").mkdir()
    for seed, (split, num_samples) in enumerate(SAMPLES.items()):
        home = desk / "official" / split
        files = write_mpdocvqa(home, num_samples=num_samples, seed=seed, whole=True)
        shutil.copytree(home / "images", desk / "images", dirs_exist_ok=True)
        shutil.copy(files.questions[0], desk / f"{split}.json")
        write_imdb(desk / f"imdb_{split}.npy", imdb_records(files))
    pages = sorted((desk / "images").iterdir())
    for name, page in zip(("p1.png", "p2.png"), pages, strict=False):
        shutil.copy(page, desk / name)


def pack_training(desk: Path) -> None:
    """By the commands of the page, which packs what a run is measured on, with the other split's name in them."""
    for build in page_commands("documents"):
        if build[:2] == ["shards", "build"]:
            renamed = [word.replace("val.json", "train.json").replace("imdb_val", "imdb_train") for word in build]
            duoflow([word.replace("mpdocvqa/val", "mpdocvqa/train") for word in renamed], desk)


def place_results(desk: Path) -> None:
    """The framework's file about the questions that lie here."""
    asked = json.loads((desk / "val.json").read_text())["data"]
    said = {str(row["questionId"]): {"pred_answer": row["answers"][0], "pred_answer_page": 0} for row in asked}
    (desk / "results.json").write_text(json.dumps({"Scores by samples": said}))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files, recipes and checkpoints lie under the names of the pages'."""
    directory = tmp_path_factory.mktemp("documents")
    place_documents(directory)
    place_results(directory)
    corpus: Official = write_gqa(directory / "gqa", num_samples=16, seed=0)
    for split in SPLITS:
        corpus.build(directory / "data" / "gqa" / split)
    for name, checkpoint in (
        ("my-checkpoint", shared_vlm()),
        ("google/siglip-base-patch16-384", shared_checkpoint("siglip")),
    ):
        shutil.copytree(checkpoint, directory / name)
    (directory / "recipes").mkdir()
    of_pages = {split: f"data/mpdocvqa/{split}" for split in ("train", "val")}
    with_words = {split: f"data/mpdocvqa/{split}_ocr" for split in ("train", "val")}
    recipes = {
        "mpdocvqa_vlm_lora": ("mpdocvqa", of_pages, {"model": {"vlm": shared_vlm()}, "losses": {"page": 0.25}}),
        "mpdocvqa_hi_vt5": ("mpdocvqa", with_words, SECTIONS | {"model": SECTIONS["model"] | {"answer": shared_t5()}}),
        "mpdocvqa_retrieval": ("mpdocvqa_retrieval", of_pages, {"model": {"retrieval": shared_checkpoint("clip")}}),
        "gqa_vlm_lora": ("gqa", {split: f"data/gqa/{split}" for split in SPLITS}, {"model": {"vlm": shared_vlm()}}),
    }
    for name, (task, data, sections) in recipes.items():
        shared = {"run": {"directory": "runs", "seed": 3}, "limits": {"epochs": 1}, "task": task}
        write_recipe(directory / "recipes" / f"{name}.yaml", data, **shared, **sections)
    return directory


@pytest.fixture(scope="module")
def followed(desk: Path) -> dict[str, dict[str, str]]:
    """Page -> command -> what it said."""

    def before(words: list[str]) -> None:
        if words[0] == "train" and not (desk / "data" / "mpdocvqa" / "train_ocr").is_dir():
            pack_training(desk)
        if words[0] == "export":
            shutil.rmtree(desk / "merged", ignore_errors=True)

    return {page: follow(page, desk, NOT_HERE, before=before) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_or_says_why_it_does_not(page: str, followed: dict[str, dict[str, str]]):
    run_or_named(page, followed[page], NOT_HERE)


def test_no_reason_is_left_of_a_command_that_is_gone():
    assert not reasons_without_command(PAGES, NOT_HERE)


def test_the_page_of_an_answer_is_named(followed: dict[str, dict[str, str]]):
    said = next(
        text for command, text in followed["documents"].items() if command.startswith("answer") and "--image" in command
    )
    assert re.search(r"  on p[12]\.png$", said.strip())


@pytest.mark.usefixtures("followed")
def test_the_best_pages_of_a_ranking_are_those_of_every_question(desk: Path):
    ranked = json.loads((desk / "runs" / "mpdocvqa_retrieval" / "predictions" / "val.json").read_text())
    asked = json.loads((desk / "val.json").read_text())["data"]
    assert {name: set(pages) for name, pages in ranked.items()} == {
        str(row["questionId"]): set(row["page_ids"]) for row in asked
    }


@pytest.mark.usefixtures("followed")
def test_what_was_merged_is_a_checkpoint_with_its_processor(desk: Path):
    names = {path.name for path in (desk / "merged").rglob("*")}
    assert {"config.json", "tokenizer.json"} <= names


def test_the_scores_of_right_answers_are_full(followed: dict[str, dict[str, str]], desk: Path):
    assert followed["documents"]
    assert json.loads((desk / "scores.json").read_text())["scores"]["anls"] == 1.0
