"""What the doctor looks for is what the recipe's task uses, and the way out that it names is the task's own."""

from pathlib import Path

import pytest

from shards.tasks import TASKS
from trainer import cli
from trainer.config import load_config
from trainer.config.schema import REPOSITORY
from trainer.doctor.checkpoints import checkpoint_uses
from trainer.doctor.recipe import data_rows
from trainer.tasks import task_named

TOWERS = {
    "gqa": {"model.match", "model.answer"},
    "vqa": {"model.answer"},
    "snli_ve": {"model.match"},
    "nlvr2": {"model.match"},
    "lxmert": {"model.match", "answers.start_from"},
    "mpdocvqa": {"model.vlm"},
    "mpdocvqa_retrieval": {"model.retrieval"},
}


def towers_of(task: str, *overrides: str) -> set[str]:
    config = load_config(REPOSITORY / task_named(task).recipe, overrides)
    return {use.key for use in checkpoint_uses(config) if use.trains} - {"model.vision"}


@pytest.mark.parametrize("task", TASKS)
def test_checkpoints_of_all_text_towers_that_the_losses_use_are_looked_for(task: str):
    assert towers_of(task) == TOWERS[task]


def test_a_head_of_classes_needs_the_tower_that_reads_for_it():
    assert towers_of("vqa", "losses.answer=0", "losses.classify=1") == {"model.answer"}
    assert towers_of("gqa", "losses.answer=0", "early_stopping.metric=val/itm_accuracy") == {"model.match"}


@pytest.mark.parametrize("task", TASKS)
def test_missing_shards_are_built_by_a_command_of_the_task(task: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = load_config(REPOSITORY / task_named(task).recipe)
    row = next(iter(data_rows(config)))
    (command,) = row.steps
    assert row.fault.endswith(f"run `{command}`")
    assert f"--format {TASKS[task].formats[0]} " in command
    words = command.split()
    questions = words[words.index("--questions") + 1]
    if "--images" in words:
        (tmp_path / words[words.index("--images") + 1]).mkdir(parents=True)
    assert cli.main(words[1:]) == 2, "it parses; the files are not there"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"duoflow: {questions}")
    assert "cannot be read" in line or "no such" in line
