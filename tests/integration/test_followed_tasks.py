"""Somebody with the official files of a task follows its part of the page of tasks, from files to answers.

The files are small and written by code; the page packs the split that is trained on, and what a recipe reads beside it
is packed by the same command with the names of another split in it.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.documents import shared_vlm, write_mpdocvqa
from tests.models import EFFICIENT_SAM, FUSION, SCRATCH
from tests.official import Official
from tests.pages import duoflow, follow, page_commands, reasons_without_command, run_or_named
from tests.regions import shared_lxmert
from tests.runs import write_recipe
from tests.task_corpora import write_lxmert, write_nlvr2, write_snli_ve, write_vqa

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NOT_HERE: dict[str, str] = {}
"""What stands in commands that do not run here -> why."""
SCRATCHED = {"scratch": SCRATCH, "efficient_sam": EFFICIENT_SAM, "fusion": FUSION, "freeze": []}
OTHERS = {
    "vqa": {
        "val": {"train2014": "val2014", "/train": "/val"},
        "testdev": {"train2014": "val2014", "/train": "/testdev"},
    },
    "snli_ve": {"dev": {"ve_train": "ve_dev", "/train": "/dev"}},
    "nlvr2": {"dev": {"train.json": "dev.json", "/train": "/dev"}},
    "mpdocvqa": {"val": {"train.json": "val.json", "/train": "/val"}},
}
"""Task -> splits that its recipe reads beside training -> what the command of training says instead."""


def place(files: Official, desk: Path, *names: str) -> None:
    """Put the files of a split where a command looks for them.

    Args:
        names: of the images, the questions and the annotations.
    """
    found = (files.images, files.questions[0], *files.annotations)
    for path, name in zip(found, names, strict=True):
        assert path is not None
        (desk / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, desk / name, dirs_exist_ok=True) if path.is_dir() else shutil.copy(path, desk / name)


def lay_out(words: list[str], desk: Path) -> None:
    """The files of the task that a command packs: those of several tasks have the same names."""
    if words[:2] != ["shards", "build"]:
        return
    task = words[words.index("--format") + 1]
    samples = {"train": 16, "val": 7}
    if task == "lxmert":
        if not (desk / "vqa").is_dir():
            place_lxmert(desk)
        return
    for seed, (split, num_samples) in enumerate(samples.items()):
        home, size = desk / "official" / task / split, {"num_samples": num_samples, "seed": seed, "whole": True}
        if task == "vqa":
            names = (f"v2_OpenEnded_mscoco_{split}2014_questions.json", f"v2_mscoco_{split}2014_annotations.json")
            place(write_vqa(home, **size), desk, f"{split}2014", *names)
        elif task == "snli_ve":
            name = {"train": "train", "val": "dev"}[split]
            place(write_snli_ve(home, **size), desk, "flickr30k-images", f"snli_ve_{name}.jsonl")
        elif task == "nlvr2":
            name = {"train": "train", "val": "dev"}[split]
            place(write_nlvr2(home, **size), desk, f"images/{name}", f"{name}.json")
        else:
            place(write_mpdocvqa(home, **size), desk, "images", f"{split}.json")


def place_lxmert(desk: Path) -> None:
    """LXMERT's questions in three parts, over the regions of two files."""
    files = write_lxmert(desk / "official" / "lxmert", num_samples=24, seed=0, whole=True)
    for path, name in zip(files.regions, ("train2014", "val2014"), strict=True):
        shutil.copy(path, desk / f"{name}_obj36.tsv")
    rows = json.loads(files.questions[0].read_text())
    in_val = {line.split("\t")[0] for line in files.regions[1].read_text().splitlines()}
    parts = {"train": [], "nominival": [], "minival": []}
    for row in rows:
        beside = "minival" if row["question_id"] // 1000 % 4 == 0 else "nominival"
        parts[beside if row["img_id"] in in_val else "train"].append(row)
    (desk / "vqa").mkdir()
    for name, part in parts.items():
        (desk / "vqa" / f"{name}.json").write_text(json.dumps(part))


def pack_the_others(words: list[str], desk: Path) -> None:
    """By the command of the page, with other names in it, once the page has packed what is trained on."""
    task = next((task for task in OTHERS if words[1].startswith(f"recipes/{task}")), None)
    if words[0] != "train" or task is None:
        return
    (build,) = (words for words in page_commands("tasks") if words[:4] == ["shards", "build", "--format", task])
    for changes in OTHERS[task].values():
        changed = build
        for said, instead in changes.items():
            changed = [word.replace(said, instead) for word in changed]
        duoflow(changed, desk)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where recipes of a few thousand parameters lie under the names of the page's."""
    directory = tmp_path_factory.mktemp("tasks")
    (directory / "recipes").mkdir()
    splits = {
        "vqa": ("train", "val", "testdev"),
        "snli_ve": ("train", "dev"),
        "nlvr2": ("train", "dev"),
        "mpdocvqa": ("train", "val"),
        "lxmert": ("vqa_train", "vqa_minival"),
    }
    sections = {
        "vqa_blip_base": {"answers": {"min_count": 1}, "losses": {"answer": 1.0, "classify": 0.0}},
        "snli_ve_blip_base": {},
        "nlvr2_blip_base": {},
        "lxmert_vqa": {
            "answers": {"min_count": 1},
            "model": dict.fromkeys(("vision", "match"), shared_lxmert())
            | {"second_stream": "none", "fusion": {"name": "sum"}, "freeze": []},
        },
        "mpdocvqa_vlm_lora": {"model": {"vlm": shared_vlm()}},
    }
    for name, own in sections.items():
        task = next(task for task in splits if name.startswith(task))
        data = dict(zip(("train", "val", "testdev"), (f"data/{task}/{split}" for split in splits[task]), strict=False))
        write_recipe(
            directory / "recipes" / f"{name}.yaml",
            data,
            task=task,
            **{"run": {"directory": "runs", "seed": 3}, "limits": {"epochs": 1}, "model": SCRATCHED} | own,
        )
    return directory


@pytest.fixture(scope="module")
def followed(desk: Path) -> dict[str, str]:
    """Command -> what it said."""

    def before(words: list[str]) -> None:
        lay_out(words, desk)
        pack_the_others(words, desk)

    return follow("tasks", desk, NOT_HERE, before=before)


def test_every_command_of_the_page_runs_or_says_why_it_does_not(followed: dict[str, str]):
    run_or_named("tasks", followed, NOT_HERE)
    assert not reasons_without_command(("tasks",), NOT_HERE)


@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize("run", ["vqa_blip_base", "snli_ve_blip_base", "nlvr2_blip_base", "lxmert_vqa"])
def test_the_run_of_a_task_has_been_measured_and_exported(desk: Path, run: str):
    assert json.loads((desk / "runs" / run / "status.json").read_text())["state"] == "done"
    assert (desk / "runs" / run / "export" / "export.json").is_file()


def test_answers_are_those_of_a_list_where_they_are_ranked(followed: dict[str, str]):
    written = followed["evaluate runs/vqa_blip_base --split testdev"]
    ranked = followed["evaluate runs/vqa_blip_base --split testdev answers.by=rank"]
    assert "testdev/accuracy" in written
    assert "testdev/accuracy" in ranked
