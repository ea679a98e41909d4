"""Micro-batches by tokens over ranks, what bounds a run, and runs that do not fit: one launch of two ranks, one alone.

A rank of the last step has only padding, so its micro-batches are as unlike the other's as they can be.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.distributed.forked_ranks import fork_ranks
from tests.distributed.training_runs import Runs, launched
from tests.distributed.training_worker import Case, Fault
from tests.models import FUSION, SCRATCH
from tests.runs import NO_COMPILER, TOTAL_STEPS, LeftOver, write_recipe, write_shards

pytestmark = pytest.mark.distributed

DONE, MISTAKE, KILLED = 0, 2, -9
TOKENS = {"few": 40, "some": 150, "all": 100_000}
"""Padded question tokens of a micro-batch: about a visit, a few, and every visit at once."""
KILL = Fault(function="trainer.training.loop:train_step", call=8, signal="SIGKILL")
DROPOUT = ("model.fusion.dropout=0.1", "model.scratch.dropout=0.1")


def by_tokens(limit: int) -> tuple[str, str]:
    return "batch.micro_visits=null", f"batch.micro_tokens={limit}"


def case(recipe: Path, name: str, *overrides: str, fault: Fault | None = None) -> Case:
    return Case(name=name, recipe=str(recipe), overrides=[f"run.name={name}", *overrides], fault=fault)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str]) -> Runs:
    out = tmp_path_factory.mktemp("alone")
    recipe = write_recipe(out / "tiny.yaml", data)
    killed = case(recipe, "killed", *DROPOUT, *by_tokens(150), "checkpoint.every_steps=3", fault=KILL)
    cases = [
        case(recipe, "visits"),
        *(case(recipe, name, *by_tokens(limit)) for name, limit in TOKENS.items()),
        case(recipe, "whole", *DROPOUT, *by_tokens(150)),
        *(killed, replace(killed, name="killed_again", fault=None)),
        case(recipe, "auto", "batch.micro_visits=auto"),
        case(recipe, "traced", "logging.profile_steps=2"),
    ]
    return launched(out, cases, processes=1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str]) -> Runs:
    out = tmp_path_factory.mktemp("together")
    recipe = write_recipe(out / "tiny.yaml", data)
    cases = [
        *(
            case(recipe, f"stage{stage}", *by_tokens(150), f"engine.policy=ds_configs/zero{stage}.json")
            for stage in range(4)
        ),
        case(recipe, "auto", "batch.micro_visits=auto"),
    ]
    return launched(out, cases, processes=2)


def losses(runs: Runs, name: str) -> list[float]:
    found = runs[name].losses
    assert len(found) == TOTAL_STEPS
    return [found[step]["train/loss"] for step in sorted(found)]


@pytest.mark.parametrize("name", TOKENS)
def test_losses_are_those_of_every_other_way_to_cut_a_step(alone: Runs, name: str):
    assert alone.codes[name] == [DONE]
    assert losses(alone, name) == pytest.approx(losses(alone, "visits"), rel=1e-5)


@pytest.mark.parametrize("stage", range(4))
def test_ranks_have_as_many_micro_batches_each_and_the_losses_of_one(alone: Runs, together: Runs, stage: int):
    assert together.codes[f"stage{stage}"] == [DONE, DONE]
    assert losses(together, f"stage{stage}") == pytest.approx(losses(alone, "visits"), rel=1e-5)


def test_a_run_that_was_killed_goes_on_bit_for_bit(alone: Runs):
    assert alone.codes["killed"] == [KILLED]
    assert alone.codes["killed_again"] == [DONE]
    assert alone["killed"].bits("last") == alone["whole"].bits("last")


def test_auto_takes_a_size_that_fits_and_the_same_on_every_rank(alone: Runs, together: Runs):
    assert alone.codes["auto"] == [DONE]
    assert together.codes["auto"] == [DONE, DONE]
    assert "batch.micro_visits: auto chose 8" in alone.said("auto")
    assert "batch.micro_visits: auto chose 4" in together.said("auto")
    assert losses(together, "auto") == pytest.approx(losses(alone, "auto"), rel=1e-5)


@pytest.mark.parametrize("ranks", ["alone", "together"])
def test_every_report_says_where_the_time_went(alone: Runs, together: Runs, ranks: str):
    left = alone["visits"] if ranks == "alone" else together["stage1"]
    lines = [json.loads(line) for line in left.directory.metrics.read_text().splitlines()]
    reports = [line for line in lines if "optim/lr" in line]
    assert len(reports) == TOTAL_STEPS
    for line in reports:
        shares = [line[f"speed/{name}_share"] for name in ("compute", "data", "network", "host")]
        assert sum(shares) == pytest.approx(1.0, abs=1e-6)
        assert line["speed/bound_by"] in ("compute", "data", "network", "host")
        assert 0 < line["speed/mfu"] < 2
    if ranks == "together":
        assert all(line["speed/network_share"] > 0 for line in reports)
    assert left.status["speed"]["bound_by"] in ("compute", "data", "network", "host")


def test_the_trace_of_a_run_names_what_its_steps_do(alone: Runs):
    (path,) = alone["traced"].directory.profile.iterdir()
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"forward", "backward", "optimizer"} <= names


def test_a_micro_batch_that_does_not_fit_ends_with_a_line_and_the_number_to_set(data: dict[str, str], tmp_path: Path):
    """All visits at once at 1,601 image tokens: the attention of the first layer alone would take more than a GiB."""
    scratch = SCRATCH | {"image_size": 320, "vision_layers": 1, "text_layers": 1}
    model = {"scratch": scratch, "second_stream": "none", "fusion": FUSION, "freeze": []}
    recipe = write_recipe(tmp_path / "tight.yaml", data, model=model, batch={"visits": 32, "micro_visits": 32})
    ended = fork_ranks("tests.distributed.tight_worker", str(900 * 2**20), str(recipe), processes=1, env=NO_COMPILER)
    said = [line for line in ended.stdout.splitlines() if "out of memory" in line]
    assert ended.returncode == MISTAKE, ended.stdout[-2000:]
    assert "Traceback" not in ended.stdout
    assert len(said) == 1
    assert "out of memory with batch.micro_visits=32 (" in said[0]
    assert "activations of 32 visits" in said[0]
    assert "set batch.micro_visits=" in said[0]
    status = LeftOver(tmp_path / "runs" / "tight").status
    assert (status["state"], status["exit_code"]) == ("failed", MISTAKE)
