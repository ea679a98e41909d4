"""Somebody with a data set's files, and with what a system answered, follows the pages of data and of scores.

The files of the scores are the cases whose numbers the official scripts have given, so that what the page shows behind
a command is what the command says.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.pages import fenced_behind, follow, reasons_without_command, run_or_named
from tests.unit.trainer.scoring.task_files import (
    GQA,
    Files,
    mpdocvqa_files,
    nlvr2_files,
    retrieval_files,
    snli_ve_files,
    vqa_files,
)

pytestmark = pytest.mark.integration

PAGES = ("data", "scores")
NOT_HERE = {"--engine ray": "asks a Ray cluster; tests/unit/shards/build has it"}
"""What stands in commands that do not run here -> why."""
SHOWN = ("vqa", "nlvr2", "snli_ve", "mpdocvqa", "mpdocvqa_retrieval")
"""Tasks whose numbers on the page are those of the files here."""


def lxmert_files(directory: Path) -> Files:
    """Three questions with what each answer is worth."""
    labels = ({"red": 1.0}, {"two": 0.6, "2": 1.0}, {"yes": 0.9})
    return Files(
        directory,
        "lxmert",
        questions=[
            {"question_id": number, "img_id": "COCO_val2014_000000000001", "sent": "What?", "label": label}
            for number, label in enumerate(labels)
        ],
        predictions=[{"question_id": number, "answer": text} for number, text in enumerate(("red", "two", "no"))],
    )


def one_wrong(directory: Path) -> Files:
    """The pairs of SNLI-VE, of which the page's system takes the neutral one for another."""
    files = snli_ve_files(directory)
    files.contents["predictions"][1]["prediction"] = "entailment"
    return files


FILES = {
    "vqa": vqa_files,
    "nlvr2": nlvr2_files,
    "snli_ve": one_wrong,
    "lxmert": lxmert_files,
    "mpdocvqa": mpdocvqa_files,
    "mpdocvqa_retrieval": retrieval_files,
}


def lay_out(words: list[str], desk: Path) -> None:
    """Files of the task that the command scores, under the names of the command."""
    if words[0] != "score":
        return
    if "--task" not in words:
        chunks = desk / "val_all_questions"
        chunks.mkdir()
        shutil.copy(GQA / "questions.json", chunks / "val_all_questions_0.json")
        shutil.copy(GQA / "predictions.json", desk)
        for name in ("choices", "sceneGraphs", "attentions"):
            shutil.copy(GQA / f"{name}.json", desk / (f"{name}.json" if name == "attentions" else f"val_{name}.json"))
        return
    task = words[words.index("--task") + 1]
    kept = desk / "kept" / task
    kept.mkdir(parents=True)
    for option, path in zip(*[iter(FILES[task](kept).words())] * 2, strict=True):
        if option != "--task":
            shutil.copy(path, desk / words[words.index(option) + 1])


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Page -> command -> what it said."""
    desk = tmp_path_factory.mktemp("scores")
    corpus = write_corpus(desk / "corpus")
    (desk / "questions").mkdir()
    corpus.questions.rename(desk / "questions" / "train_balanced_questions.json")
    corpus.images.rename(desk / "images")
    return {page: follow(page, desk, NOT_HERE, before=lambda words: lay_out(words, desk)) for page in PAGES}


def scored(said: dict[str, str], task: str | None) -> Iterator[str]:
    """What a score of a task said, line by line."""
    wanted = f"score --task {task} " if task else "score --questions "
    (text,) = (text for command, text in said.items() if command.startswith(wanted))
    yield from text.strip().splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_or_says_why_it_does_not(page: str, followed: dict[str, dict[str, str]]):
    run_or_named(page, followed[page], NOT_HERE)


def test_no_reason_is_left_of_a_command_that_is_gone():
    assert not reasons_without_command(PAGES, NOT_HERE)


@pytest.mark.parametrize("task", SHOWN)
def test_the_page_shows_what_the_command_says(followed: dict[str, dict[str, str]], task: str):
    assert list(scored(followed["scores"], task)) == fenced_behind("scores", f"--task {task} ")


def test_the_page_of_scores_names_every_line_of_gqa(followed: dict[str, dict[str, str]]):
    shown = [line.split(":")[0] for line in fenced_behind("scores", "score --questions ") if line.strip() != "..."]
    said = [line.split(":")[0] for line in scored(followed["scores"], None)]
    assert set(shown) <= set(said)


def test_a_split_that_is_packed_is_whole(followed: dict[str, dict[str, str]]):
    said = {shlex.split(command)[1]: text for command, text in followed["data"].items()}
    assert re.search(r"^images +12$", said["info"], re.MULTILINE)
    assert "no fault" in said["verify"]
