"""What hardly anybody wants is said before it happens, and only then."""

import math
from pathlib import Path

import pytest

from shards.format.index import read_index
from tests.runs import STEPS_PER_EPOCH, write_recipe, write_shards
from trainer.config import RunConfig, load_config
from trainer.engine.state_file import STATE
from trainer.run_directory import RunDirectory, write_json
from trainer.training.caveats import caveats, rate_jump, total_steps
from trainer.training.schedule import schedule_of


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("caveats")
    return write_recipe(directory / "tiny.yaml", write_shards(directory))


def notes(recipe: Path, *overrides: str, previous: RunConfig | None = None) -> list[str]:
    return caveats(load_config(recipe, overrides), previous)


def test_a_sound_recipe_has_none(recipe: Path):
    assert notes(recipe) == []


def test_steps_are_those_that_the_run_will_take(recipe: Path):
    config = load_config(recipe)
    assert total_steps(config, read_index(config.data.train)) == STEPS_PER_EPOCH * config.limits.epochs
    assert total_steps(load_config(recipe, ["limits.max_steps=3"]), read_index(config.data.train)) == 3


def test_a_warm_up_that_fills_the_run_is_said_with_the_rate_that_is_reached(recipe: Path):
    (line,) = notes(recipe, "optim.warmup_steps=10")
    assert line.startswith(
        "optim.warmup_steps: 10, and the run has 10 steps: the learning rate only climbs, to 9.1e-04"
    )
    assert notes(recipe, "optim.warmup_steps=9") == []


def test_validation_on_training_data_is_said_also_where_it_is_a_copy(recipe: Path):
    config = load_config(recipe)
    (line,) = notes(recipe, f"data.val={config.data.train}")
    assert line.startswith(f"data.val: {config.data.train} is what the run trains on")
    link = recipe.parent / "copy"
    link.symlink_to(config.data.train)
    assert notes(recipe, f"data.val={link}")[0].startswith(f"data.val: {link} is what the run trains on")


def test_a_vocabulary_without_room_for_words_is_said_with_the_size_that_has_it(recipe: Path):
    (line,) = notes(recipe, "model.scratch.vocab_size=16")
    assert line.startswith("model.scratch.vocab_size: 16 has room for 0 words beside the letters")
    enough = line.rpartition("raise it to ")[2].split()[0].replace(",", "")
    assert notes(recipe, f"model.scratch.vocab_size={enough}") == []


def test_a_longer_run_of_the_same_name_says_how_the_rate_jumps(recipe: Path):
    config = load_config(recipe)
    run = RunDirectory.of(config)
    (run.checkpoints / "step9").mkdir(parents=True)
    write_json(run.checkpoints / "step9" / STATE, {"progress": {"global_step": 9, "identity": {}}})
    (run.checkpoints / "last").write_text("step9")
    (line,) = notes(recipe, "limits.epochs=20", previous=config)
    assert line.startswith("limits.epochs: the learning rate jumps from")
    assert "at step 9, because its course is stretched over 100 steps in place of 10" in line
    assert notes(recipe, previous=config) == []


def test_the_rate_that_is_offered_goes_on_where_the_old_one_was(recipe: Path):
    config, longer = load_config(recipe), load_config(recipe, ["limits.epochs=20"])
    (line,) = rate_jump(config, longer, step=9, before=10, after=100)
    offered = float(line.partition("optim.lr=")[2].split()[0])
    goes_on = load_config(recipe, ["limits.epochs=20", f"optim.lr={offered}"])
    assert list(rate_jump(config, goes_on, step=9, before=10, after=100)) == []
    old, new = schedule_of(config.optim, 10)(9), schedule_of(goes_on.optim, 100)(9)
    assert math.isclose(old, new, rel_tol=0.05)


def test_a_run_that_has_not_begun_or_is_over_has_no_jump(recipe: Path):
    config = load_config(recipe)
    assert list(rate_jump(config, config, step=0, before=10, after=100)) == []
    assert list(rate_jump(config, config, step=10, before=10, after=10)) == []
