"""LXMERT over regions in whole runs: killed and gone on with, exported, and at every stage on two ranks.

Two launches serve all tests.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import LxmertModel

from model.towers.lxmert import dead_modules
from tests.distributed.training_runs import IN_SECOND_EPOCH, Runs, launched
from tests.distributed.training_worker import Case, Fault
from tests.regions import tiny_lxmert
from tests.selection import STAGES, STAGES_EVERY_DAY, chosen_stages, with_slow
from tests.task_corpora import OVER_REGIONS, task_recipe, write_task
from trainer.engine.state_file import MODEL

pytestmark = pytest.mark.distributed

DONE, KILLED = 0, -9
STEPS = 2
IN_SECOND_STEP = Fault(function=IN_SECOND_EPOCH.function, call=2, signal="SIGKILL")
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}

Recipe = Callable[[str], Path]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """That of a corpus, for two steps."""
    home = tmp_path_factory.mktemp("home")
    data = cache(lambda corpus: write_task(home / corpus, corpus))
    every = {"checkpoint": {"every_steps": 1}, "limits": {"max_steps": STEPS}, "validate_every": {"max_images": 2}}
    return cache(lambda corpus: task_recipe(home / f"{corpus}.yaml", corpus, data(corpus), **every))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An LXMERT without dropout, whose losses do not depend on ranks, and one with it."""
    home = tmp_path_factory.mktemp("checkpoints")
    return {"plain": tiny_lxmert(home / "plain"), "dropout": tiny_lxmert(home / "dropout", **DROPOUT)}


def case(recipe: Path, out: Path, lxmert: str, name: str, *overrides: str, fault: Fault | None = None) -> Case:
    places = (f"run.directory={out / 'runs'}", f"run.name={name.removesuffix('_again')}")
    towers = (f"model.vision={lxmert}", f"model.match={lxmert}")
    return Case(name=name, recipe=str(recipe), overrides=[*places, *towers, *overrides], fault=fault)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, checkpoints: dict[str, str]) -> Runs:
    out, cases = tmp_path_factory.mktemp("alone"), []
    for corpus in OVER_REGIONS:
        own, dropout = recipe(corpus), checkpoints["dropout"]
        cases += [
            case(own, out, checkpoints["plain"], corpus),
            case(own, out, dropout, f"{corpus}_whole"),
            case(own, out, dropout, f"{corpus}_killed", fault=IN_SECOND_STEP),
            case(own, out, dropout, f"{corpus}_killed_again"),
        ]
    return launched(out, cases, processes=1)


@pytest.fixture(scope="module")
def together(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    recipe: Recipe,
    checkpoints: dict[str, str],
) -> Runs:
    out, cases = tmp_path_factory.mktemp("together"), []
    for corpus in OVER_REGIONS:
        for stage in chosen_stages(request):
            more = (f"engine.policy=ds_configs/zero{stage}.json", "model.gradient_checkpointing=true")
            cases.append(case(recipe(corpus), out, checkpoints["plain"], f"{corpus}_zero{stage}", *more))
    return launched(out, cases, processes=2)


@pytest.mark.parametrize("corpus", OVER_REGIONS)
def test_a_killed_run_goes_on_to_the_same_bits_dropout_included(alone: Runs, corpus: str):
    assert alone.codes[f"{corpus}_whole"] == [DONE], alone.said(f"{corpus}_whole")
    assert alone.codes[f"{corpus}_killed"] == [KILLED]
    assert alone.codes[f"{corpus}_killed_again"] == [DONE], alone.said(f"{corpus}_killed_again")
    assert alone[f"{corpus}_killed"].bits("last") == alone[f"{corpus}_whole"].bits("last")


@pytest.mark.parametrize("corpus", OVER_REGIONS)
def test_what_was_trained_comes_back_from_the_export_and_the_rest_as_it_was(
    alone: Runs, checkpoints: dict[str, str], corpus: str
):
    assert alone.codes[corpus] == [DONE], alone.said(corpus)
    run = alone[corpus]
    assert run.exported["parts"] == {"match": "lxmert", "vision": "lxmert"}
    model, report = LxmertModel.from_pretrained(run.directory.export / "lxmert", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights, before = load_file(run.checkpoint("last") / MODEL), LxmertModel.from_pretrained(checkpoints["plain"])
    trained = {name.partition(".")[2]: value for name, value in weights.items() if not name.startswith("heads.")}
    dead = dead_modules(model.config)
    for name, value in model.state_dict().items():
        assert name.startswith(dead) == (name not in trained), name
        assert value.equal(trained.get(name, before.state_dict()[name])), name
    assert any(not before.state_dict()[name].equal(value) for name, value in trained.items())


@pytest.mark.parametrize("stage", with_slow(STAGES, STAGES_EVERY_DAY))
@pytest.mark.parametrize("corpus", OVER_REGIONS)
def test_two_ranks_learn_the_same_at_every_stage(alone: Runs, together: Runs, corpus: str, stage: int):
    name = f"{corpus}_zero{stage}"
    assert together.codes[name] == [DONE, DONE], together.said(name)
    expected, run = alone[corpus], together[name]
    assert list(run.losses) == list(range(1, STEPS + 1))
    for step, losses in run.losses.items():
        assert losses == pytest.approx(expected.losses[step], rel=1e-5), step
    assert run.grad_norms == pytest.approx(expected.grad_norms, rel=1e-5)
    assert run.exported["parts"] == {"match": "lxmert", "vision": "lxmert"}
