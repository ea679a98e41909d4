"""Every optimizer of timm's that is offered, on ranks of their own: what timm computes, and resumed bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.forked_ranks import fork_ranks
from tests.selection import chosen, with_slow
from trainer.engine.optimizers import COUNTS_BY_GROUP, ELEMENT_WISE, WHOLE_PARAMETERS

pytestmark = pytest.mark.distributed

WORKER = "tests.distributed.optimizer_worker"
# Nothing may need a compiler: DeepSpeed would build an operator for its CPU collectives.
NO_COMPILER = {"CXX": "/nonexistent", "CC": "/nonexistent"}
EVERY_DAY = ("adamw", "adan", "adopt", "lion", "madgrad", "nadam", "adafactor", "lamb", "muon", "novograd")
"""The default, one that counts by group, and those of half precision; `make test-slow` has the others."""
OFFERED = [*with_slow([*ELEMENT_WISE, *WHOLE_PARAMETERS], EVERY_DAY)]
FLAT = [(name, stage) for name in ELEMENT_WISE for stage in (1, 2, 3) if stage < 3 or name not in COUNTS_BY_GROUP]
SPREAD = [pytest.param(name, stage, marks=() if name in EVERY_DAY else pytest.mark.slow) for name, stage in FLAT]


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[dict[str, Any]]]:
    """By world size what each rank saw; one process continues the checkpoints of two."""
    out, names = tmp_path_factory.mktemp("optimizers"), sorted(chosen(request, "name"))
    done = fork_ranks(WORKER, str(out), *names, env=NO_COMPILER, timeout_seconds=900.0)
    assert done.returncode == 0, done.stdout[-3000:]
    done = fork_ranks(WORKER, str(out), *names, processes=1, env=NO_COMPILER, timeout_seconds=900.0)
    assert done.returncode == 0, done.stdout[-3000:]
    return {world: [_read(out, world, rank) for rank in range(world)] for world in (1, 2)}


def _read(out: Path, world: int, rank: int) -> dict[str, Any]:
    return json.loads((out / f"{world}.rank{rank}.json").read_text())


@pytest.mark.parametrize("name", OFFERED)
def test_at_stage_0_it_takes_the_steps_of_timms_own_loop(results, name):
    trial = results[1][0]["trials"][f"{name} 0"]
    assert trial["distance"] <= 1e-6
    assert trial["way"] > 1e-4, "parameters should have gone some way, or little was compared"


@pytest.mark.parametrize(("name", "stage"), SPREAD)
def test_under_zero_on_two_ranks_it_takes_the_same_steps(results, name, stage):
    assert results[2][0]["trials"][f"{name} {stage}"]["distance"] <= 1e-5


@pytest.mark.parametrize("name", OFFERED)
def test_resumed_at_stage_0_it_goes_on_bit_for_bit(results, name):
    trial = results[1][0]["trials"][f"{name} 0"]
    assert trial["resumes"]
    assert trial["round trip"]


@pytest.mark.parametrize(("name", "stage"), SPREAD)
def test_resumed_under_zero_it_goes_on_bit_for_bit(results, name, stage):
    trial = results[2][0]["trials"][f"{name} {stage}"]
    assert trial["resumes"]
    assert trial["round trip"]
    assert trial["kept"] == results[1][0]["trials"][f"{name} 0"]["kept"], "another stage keeps something else"


def test_half_precision_resumes_bit_for_bit(results):
    trials = results[1][0]["bf16"] | results[2][0]["bf16"]
    assert len(trials) == 12
    for trial in trials.values():
        assert trial["resumes"]
        assert trial["round trip"]


@pytest.mark.parametrize("name", with_slow(ELEMENT_WISE, EVERY_DAY))
def test_a_checkpoint_of_stage_1_and_two_ranks_continues_elsewhere(results, name):
    for world, stage in ((1, 0), (2, 3)):
        if stage == 0 or (name, stage) in FLAT:
            assert results[world][0]["moved"][f"{name} {stage}"] <= 1e-5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_group_of_its_own_learning_rate_keeps_it_at_every_stage(results, stage):
    assert results[1][0]["scaled"][str(stage)] <= 1e-6
    assert results[2][0]["scaled"][str(stage)] <= 1e-5
