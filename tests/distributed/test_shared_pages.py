"""Documents whose pages are computed once for all questions, against the same run with a row of each: fifty steps."""

import pytest

from tests.distributed.training_runs import Runs, launched
from tests.distributed.training_worker import Case
from tests.task_corpora import task_recipe, write_task

pytestmark = pytest.mark.distributed

STEPS = 50
WAYS = ("shared", "rows")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    home = tmp_path_factory.mktemp("home")
    recipe = task_recipe(
        home / "documents.yaml",
        "mpdocvqa",
        write_task(home, "mpdocvqa"),
        batch={"visits": 4, "micro_visits": 2},
        limits={"max_steps": STEPS, "epochs": STEPS},
        early_stopping={"metric": "val/anls"},
        validate_every={"epochs": STEPS, "max_images": 2},
    )
    cases = [
        Case(
            name=way,
            recipe=str(recipe),
            overrides=[f"run.directory={home / 'runs'}", f"run.name={way}", f"vlm.questions={way}"],
            fault=None,
        )
        for way in WAYS
    ]
    return launched(home, cases, processes=1)


def test_fifty_steps_have_the_losses_of_rows(runs: Runs) -> None:
    together, rows = (runs[way].losses for way in WAYS)
    assert together.keys() == rows.keys() == set(range(1, STEPS + 1))
    assert together[STEPS]["train/loss"] < 0.9 * together[1]["train/loss"], "nothing was learnt that could differ"
    for step, losses in together.items():
        assert losses == pytest.approx(rows[step], rel=1e-4), step


def test_questions_stay_together_where_they_are_to(runs: Runs) -> None:
    assert "every question is a row of its own now" not in runs.said("shared")
