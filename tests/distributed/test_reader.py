"""Hi-VT5 in whole runs: killed and gone on with, and on two ranks at every stage."""

from pathlib import Path

import pytest

from tests.distributed.training_runs import IN_SECOND_EPOCH, Runs, launched
from tests.distributed.training_worker import Case, Fault
from tests.reader import reader_recipe, write_documents, write_t5
from tests.selection import STAGES, STAGES_EVERY_DAY, chosen_stages, with_slow

pytestmark = pytest.mark.distributed

DONE, KILLED = 0, -9
IN_SECOND_STEP = Fault(function=IN_SECOND_EPOCH.function, call=2, signal="SIGKILL")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_t5(home / "dry")
    write_t5(home / "dropout", dropout=0.1)
    return reader_recipe(
        home / "own.yaml",
        write_documents(home),
        model={"answer": str(home / "dry"), "gradient_checkpointing": True},
        limits={"max_steps": 2},
        checkpoint={"every_steps": 1},
        batch={"visits": 4, "micro_visits": 1},
    )


def case(recipe: Path, out: Path, name: str, *overrides: str, fault: Fault | None = None) -> Case:
    places = (f"run.directory={out / 'runs'}", f"run.name={name.removesuffix('_again')}")
    return Case(name=name, recipe=str(recipe), overrides=[*places, *overrides], fault=fault)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Runs:
    out = tmp_path_factory.mktemp("alone")
    dropout = f"model.answer={recipe.parent / 'dropout'}"
    cases = [
        case(recipe, out, "dry"),
        case(recipe, out, "whole", dropout),
        case(recipe, out, "killed", dropout, fault=IN_SECOND_STEP),
        case(recipe, out, "killed_again", dropout),
    ]
    return launched(out, cases, processes=1)


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Runs:
    out = tmp_path_factory.mktemp("together")
    cases = [
        case(recipe, out, f"zero{stage}", f"engine.policy=ds_configs/zero{stage}.json")
        for stage in chosen_stages(request)
    ]
    return launched(out, cases, processes=2)


def test_every_run_comes_to_its_end(alone: Runs, together: Runs) -> None:
    codes = {**alone.codes, **together.codes}
    assert codes.pop("killed") == [KILLED]
    assert all(set(found) == {DONE} for found in codes.values()), codes


def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(alone: Runs) -> None:
    assert alone["killed"].bits("last") == alone["whole"].bits("last")
    assert alone["killed"].losses == alone["whole"].losses


@pytest.mark.parametrize("stage", with_slow(STAGES, STAGES_EVERY_DAY))
def test_the_losses_do_not_depend_on_ranks_or_stage(alone: Runs, together: Runs, stage: int) -> None:
    for step, losses in together[f"zero{stage}"].losses.items():
        assert losses == pytest.approx(alone["dry"].losses[step], rel=1e-5)
