"""`duoflow tasks`: a row for every task, whose recipe, losses and metrics a run takes as they stand there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.parts import PARTS
from shards.annotations import READERS
from shards.tasks import TASKS
from trainer.cli import main
from trainer.commands.tasks import COLUMNS, task_rows
from trainer.config import load_config
from trainer.config.schema import REPOSITORY

every_row = pytest.mark.parametrize("row", task_rows(), ids=lambda row: row["task"])


def test_the_table_has_a_line_for_every_task(capsys: pytest.CaptureFixture):
    assert main(["tasks"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert tuple(head.split()) == COLUMNS
    assert [line.split()[0] for line in lines] == list(TASKS)
    assert not any(line.endswith(" ") for line in (head, *lines))
    assert len({line.index("recipes/") for line in lines}) == 1, "columns stand below each other"


def test_a_loss_without_a_weight_stands_in_brackets_and_types_are_counted(capsys: pytest.CaptureFixture):
    main(["tasks"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "answer, (classify)" in lines["vqa"]
    assert "accuracy, consistency" in lines["nlvr2"]
    assert "accuracy, binary, open, 12 by type" in lines["gqa"]


def test_json_has_the_rows_in_whole(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "tasks.json"
    assert main(["tasks", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert rows == task_rows()
    assert [tuple(row) for row in rows] == [COLUMNS] * len(TASKS)
    assert capsys.readouterr().out.startswith("task ")


def test_a_file_that_cannot_be_written_is_found_before_the_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("")
    assert main(["tasks", "--json", str(tmp_path / "file" / "tasks.json")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("duoflow: --json ")
    assert output.err.count("\n") == 1


@every_row
def test_its_recipe_is_of_this_task_and_leaves_the_losses_at_its_weights(row: dict[str, Any]):
    config = load_config(REPOSITORY / row["recipe"])
    assert config.task == row["task"]
    weights = {part: getattr(config.losses, part) for part in PARTS}
    assert {part: weight for part, weight in weights.items() if weight} == {
        part: weight for part, weight in row["losses"].items() if weight
    }


@every_row
def test_every_metric_of_it_can_decide_which_checkpoint_is_best(row: dict[str, Any]):
    for metric in row["metrics"]:
        load_config(REPOSITORY / row["recipe"], [f"early_stopping.metric=val/{metric}"])


@every_row
def test_its_formats_are_read(row: dict[str, Any]):
    assert row["formats"]
    assert set(row["formats"]) <= READERS.keys()


def test_it_waits_for_nothing_heavy():
    code = (
        "import sys; from trainer.cli import main; main(['tasks']); "
        "sys.exit(', '.join({'torch', 'transformers', 'deepspeed', 'webdataset'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
