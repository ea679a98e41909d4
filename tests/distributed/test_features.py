"""Cached tokens over ranks and starts: the same bytes from any number of ranks, and runs that go on to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.forked_ranks import fork_ranks
from tests.distributed.launch import ROOT, run
from tests.distributed.training_runs import DROPOUT, IN_SECOND_EPOCH, Runs, launched
from tests.distributed.training_worker import Case
from tests.runs import NO_COMPILER
from tests.unit.trainer.features.projects import cache, write_project
from trainer import cli
from trainer.config import dump_config, load_config

KILLED_AT_THIRD_TAR = """
import os, signal, sys
from shards.build.feature_writer import FeatureTar
from trainer import cli
finish, finished = FeatureTar.finish, []
def finish_or_die(tar):
    if len(finished) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    finished.append(finish(tar))
    return finished[-1]
FeatureTar.finish = finish_or_die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe between frozen encoders, with caches of both splits that one process has written."""
    path = write_project(tmp_path_factory.mktemp("features"))
    assert cache(path, "train") == 0
    assert cache(path, "val") == 0
    return path


def tars(directory: Path) -> dict[str, bytes]:
    """By cache and name; ranks that compute alike write alike."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*.tar"))}


def features_command(recipe: Path, out: Path, *overrides: str) -> list[str]:
    return ["features", "cache", str(recipe), "--split", "train", "--out", str(out), *overrides]


def test_two_ranks_write_what_one_does(recipe: Path, tmp_path: Path):
    command = [sys.executable, "-m", "trainer.cli", *features_command(recipe, tmp_path, "engine.processes=2")]
    done = run(command, env=NO_COMPILER, timeout_seconds=300)
    assert done.returncode == 0, done.stdout
    assert "on 2 rank(s)" in done.stdout
    assert tars(tmp_path / "train") == tars(recipe.parent / "train" / "shards" / "features")
    assert len(list(tmp_path.rglob("index.json"))) == 2


def test_what_is_wrong_is_one_line_on_any_number_of_ranks(recipe: Path, tmp_path: Path):
    config = load_config(recipe, ["model.efficient_sam.checkpoint=/nowhere.safetensors"])
    file, ranks = tmp_path / "config.yaml", tmp_path / "ranks"
    file.write_text(dump_config(config), encoding="utf-8")
    ranks.mkdir()
    done = fork_ranks("trainer.features.rank", str(file), "train", "fp16", str(ranks), env=NO_COMPILER)
    assert done.returncode == 2
    assert len([line for line in done.stdout.splitlines() if "/nowhere.safetensors" in line]) == 1
    assert "Traceback" not in done.stdout


def test_after_a_kill_the_same_command_goes_on(recipe: Path, tmp_path: Path):
    command = [sys.executable, "-c", KILLED_AT_THIRD_TAR, *features_command(recipe, tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -9
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert len(kept) == 2
    assert list(tmp_path.rglob(".*.partial"))
    assert cache(recipe, "train", "--out", str(tmp_path)) == 0
    assert tars(tmp_path / "train") == tars(recipe.parent / "train" / "shards" / "features")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(tmp_path.rglob(".*.partial"))


class TestRuns:
    @pytest.fixture(scope="class")
    def runs(self, recipe: Path) -> Runs:
        """Runs of one process over cached tokens, and one over images."""
        dropout = DROPOUT[:1]

        def case(name: str, *overrides: str, **more: object) -> Case:
            return Case(name=name, recipe=str(recipe), overrides=[f"run.name={name}", *dropout, *overrides], **more)

        killed = case("killed", "checkpoint.every_steps=3", fault=IN_SECOND_EPOCH)
        again = case("killed", "checkpoint.every_steps=3")
        cases = [
            case("cached"),
            case("images", "data.features=off"),
            killed,
            Case(name="killed_again", recipe=again.recipe, overrides=again.overrides),
            case("required", "data.features=require", "data.features_directory=/nowhere"),
        ]
        return launched(recipe.parent, cases, processes=1)

    def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(self, runs: Runs):
        assert runs.codes["killed_again"] == [0]
        assert runs["killed"].bits("last") == runs["cached"].bits("last")
        assert runs["killed"].validations == runs["cached"].validations

    def test_losses_are_those_over_images_but_for_rounding(self, runs: Runs):
        cached, images = (runs[name].losses for name in ("cached", "images"))
        assert cached.keys() == images.keys()
        for step, losses in images.items():
            assert cached[step]["train/loss"] == pytest.approx(losses["train/loss"], rel=1e-3), step
        assert cached != images

    def test_a_run_says_what_it_reads_in_a_line_for_each_split(self, runs: Runs):
        said = [line for line in runs.said("cached").splitlines() if "features: " in line]
        assert len(said) == 2
        assert "train reads cached tokens" in said[0]
        assert "val reads cached tokens" in said[1]
        assert not [line for line in runs.said("images").splitlines() if "features: " in line]

    def test_an_evaluation_reads_them_too_and_scores_the_same(self, runs: Runs, tmp_path: Path, capsys):
        scores = {}
        for read in ("require", "off"):
            file = tmp_path / f"{read}.json"
            command = ["evaluate", str(runs["cached"].path), "--split", "val", "--json", str(file)]
            assert cli.main([*command, f"data.features={read}"]) == 0
            assert ("features: val reads cached tokens" in capsys.readouterr().err) == (read == "require")
            scores[read] = json.loads(file.read_text())["metrics"]
        assert scores["require"]["val/loss"] == pytest.approx(scores["off"]["val/loss"], rel=1e-3)
        assert scores["require"] != scores["off"], "the tokens were rounded"

    def test_checkpoints_name_the_caches(self, runs: Runs):
        assert "vision.fp16." in runs["cached"].progress("last")["identity"]["cached_tokens"]
        assert "cached_tokens" not in runs["images"].progress("last")["identity"]

    def test_what_is_required_and_not_there_ends_the_run_in_a_line(self, runs: Runs):
        assert runs.codes["required"] == [2]
        assert "data.features: require, but train" in runs.said("required")
