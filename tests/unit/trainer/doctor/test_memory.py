"""The doctor's memory plan: a row for what is held, by part, stage and world size, and the largest micro-batch."""

from pathlib import Path

import pytest

from tests.runs import Project
from trainer.doctor.memory import memory_rows
from trainer.training import memory_plan


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def rows(project: Project, *overrides: str) -> dict[str, str]:
    return {row.name: row.found for row in memory_rows(project.config(*overrides))}


def test_every_stage_and_the_largest_micro_batch_has_a_row(project: Project) -> None:
    found = rows(project)
    assert list(found) == [
        "parameters",
        *(f"optimizer, ZeRO-{stage}" for stage in range(4)),
        "activations",
        "largest micro-batch",
    ]
    assert "64,144 trained" in found["parameters"]
    assert found["optimizer, ZeRO-1"].endswith("(chosen)")
    assert " on 1 rank," in found["optimizer, ZeRO-2"]
    assert " on 8 ranks" in found["optimizer, ZeRO-2"]
    assert "fusion" in found["activations"]
    assert found["largest micro-batch"].startswith("batch.micro_visits=8: ")


def test_what_does_not_fit_says_what_to_set_and_is_no_fault(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "capacity", lambda *_, **__: 1000)
    last = memory_rows(project.config())[-1]
    assert last.found.startswith("none: one visit needs ")
    assert last.steps == ("set batch.micro_visits=1",)
    assert last.fault is None


def test_a_model_that_cannot_be_loaded_is_not_planned(project: Project, tmp_path: Path) -> None:
    (row,) = memory_rows(project.config(f"model.answer={tmp_path}"))
    assert row.found.startswith("not planned: ")
    assert row.fault is None
