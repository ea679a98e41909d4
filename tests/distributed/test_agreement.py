"""Ranks that do not have the same stop before the first step, and say what differs; without a shared disk they train.

Two hosts are two working directories here: the recipe's paths are relative, so that each rank has shards and a run
directory of its own.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.corpora import build_corpus
from tests.distributed.training_runs import Runs, launched
from tests.distributed.training_worker import Case, Fault
from tests.runs import STEPS_PER_EPOCH, LeftOver, write_recipe, write_shards

pytestmark = pytest.mark.distributed

FIRST, SECOND = "fvn1", "fvn2"
IN_SECOND_EPOCH = Fault(function="trainer.training.loop:train_step", call=8, signal="SIGTERM", rank=1)
SHORT = ("limits.max_steps=2", "checkpoint.every_steps=2", "data.val=null", "logging.every_steps=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All cases in one launch of two ranks."""
    out = tmp_path_factory.mktemp("agreement")
    for host in (FIRST, SECOND):
        (out / host).mkdir()
        write_shards(out / host)
    recipe = write_recipe(out / "tiny.yaml", {"train": "train/shards", "val": "val/shards"})
    _write_relative(recipe)
    other = out / "other"
    shutil.copytree(out / SECOND, other)
    shutil.rmtree(other / "train" / "shards")
    build_corpus(other / "train", num_images=24, seed=7)
    lacking = out / "lacking"
    shutil.copytree(out / SECOND, lacking)
    sorted((lacking / "train" / "shards").glob("*.tar"))[-1].unlink()
    apart, together = [str(out / FIRST), str(out / SECOND)], [str(out / FIRST)] * 2
    cases = [
        _case(recipe, "apart", homes=apart, fault=IN_SECOND_EPOCH),
        _case(recipe, "swapped", f"limits.max_steps={STEPS_PER_EPOCH}", homes=apart),
        _case(recipe, "swapped", homes=apart[::-1], name="swapped_again"),
        _case(recipe, "apart", homes=apart, name="apart_again"),
        _case(recipe, "together", homes=together),
        _case(recipe, "other_shards", *SHORT, homes=[str(out / FIRST), str(other)]),
        _case(recipe, "lacking", *SHORT, homes=[str(out / FIRST), str(lacking)]),
        _case(recipe, "other_recipe", *SHORT, homes=together, on_rank_1=["optim.lr=0.1"]),
    ]
    return launched(out, cases, processes=2)


def _case(recipe: Path, run: str, *overrides: str, name: str | None = None, **more: object) -> Case:
    return Case(name=name or run, recipe=str(recipe), overrides=[f"run.name={run}", *overrides], **more)


def _write_relative(recipe: Path) -> None:
    tree = json.loads(recipe.read_text())
    tree["run"]["directory"] = "runs"
    recipe.write_text(json.dumps(tree))


def left(runs: Runs, host: str, name: str) -> LeftOver:
    return LeftOver(runs.directory / host / "runs" / name)


def refused(runs: Runs, case: str) -> str:
    assert runs.codes[case] == [2, 2]
    said = runs.said(case)
    assert "Traceback" not in said
    return said


def test_without_a_shared_disk_a_run_trains_saves_and_resumes_with_the_same_bits(runs: Runs):
    assert runs.codes["apart"] == [75, 75]
    assert runs.codes["apart_again"] == runs.codes["together"] == [0, 0]
    assert "resumed from" in runs.said("apart_again")
    first, together = left(runs, FIRST, "apart"), left(runs, FIRST, "together")
    assert first.bits("last") == together.bits("last")
    assert first.predictions == together.predictions


def test_each_host_has_its_own_logs_and_the_first_alone_has_checkpoints_and_export(runs: Runs):
    first, second = (left(runs, host, "apart").directory for host in (FIRST, SECOND))
    assert second.config.read_bytes() == first.config.read_bytes()
    assert [log.name for log in sorted(second.logs.iterdir())] == ["rank1.log"]
    assert [log.name for log in sorted(first.logs.iterdir())] == ["rank0.log"]
    assert not list(second.checkpoints.iterdir())
    assert not second.export.exists()
    assert json.loads(second.identity.read_text()) == json.loads(first.identity.read_text())
    state = json.loads((left(runs, FIRST, "apart").checkpoint("last") / "state.json").read_text())
    assert state["run"] == json.loads(first.identity.read_text())["run"]


def test_a_swapped_rank_0_is_refused_and_starts_nothing_over(runs: Runs):
    said = refused(runs, "swapped_again")
    assert f"has no checkpoint, and rank 1 has one of step {STEPS_PER_EPOCH}: start with rank 0 on that host" in said
    assert "--fresh" in said
    assert left(runs, FIRST, "swapped").progress("last")["global_step"] == STEPS_PER_EPOCH
    assert not list(left(runs, SECOND, "swapped").directory.checkpoints.iterdir())


def test_other_shards_on_a_host_are_refused_before_the_first_step(runs: Runs):
    assert "data           data.train: train/shards: " in refused(runs, "other_shards")
    assert not list(left(runs, FIRST, "other_shards").directory.checkpoints.iterdir())


def test_a_missing_shard_is_named_with_its_rank(runs: Runs):
    said = refused(runs, "lacking")
    assert "rank 1: data.train: train/shards/" in said
    assert ".tar is missing; expected" in said


def test_another_recipe_on_a_host_is_refused_with_both_values(runs: Runs):
    assert "optim.lr: 0.1; rank 0 has 0.001" in refused(runs, "other_recipe")
