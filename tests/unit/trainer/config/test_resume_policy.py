"""What may change when a run goes on: in silence, with a line in the log, or not at all."""

from pathlib import Path

import pytest

from shards.errors import ConfigError
from trainer.config import RunConfig, load_config
from trainer.config import resume_policy as module
from trainer.config.faults import leaf_keys
from trainer.config.resume_policy import check_resumable, config_diff, resume_policy


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("batch: {visits: 64, micro_visits: 8}\nmodel: {freeze: []}\n")
    return path


@pytest.mark.parametrize(
    ("policy", "keys"),
    [
        (
            "free",
            "limits.epochs early_stopping.patience logging.every_steps data.workers data.testdev run.directory",
        ),
        ("free", "engine.processes engine.timeout_seconds checkpoint.every_steps"),
        ("free", "validate_every.steps validate_every.epochs early_stopping.min_delta"),
        ("refused", "optim.name optim.options data.augment"),
        ("logged", "optim.lr optim.layer_decay optim.schedule optim.betas optim.warmup_steps batch.micro_visits"),
        ("logged", "engine.policy engine.link_gbits validate_every.max_images"),
        (
            "refused",
            "data.train data.val data.limit data.shuffle_shards batch.visits batch.lanes run.seed precision",
        ),
        ("refused", "model.vision model.fusion.layers losses.itm early_stopping.metric early_stopping.mode"),
        ("refused", "initialize_from"),
    ],
)
def test_each_key_has_its_policy(policy: str, keys: str):
    assert {resume_policy(key) for key in keys.split()} == {policy}


def test_every_key_of_the_policy_is_a_key_of_the_configuration():
    keys = list(leaf_keys(RunConfig))
    for name in (*module._FREE, *module._LOGGED):
        assert any(key == name or (name.endswith(".") and key.startswith(name)) for key in keys), name


def test_the_difference_names_keys_with_old_and_new_values(recipe: Path):
    old, new = load_config(recipe), load_config(recipe, ["optim.betas=[0.8, 0.9]", "limits.epochs=20"])
    assert [str(difference) for difference in config_diff(old, new)] == [
        "optim.betas: was [0.9, 0.999], is [0.8, 0.9]",
        "limits.epochs: was 10, is 20",
    ]


def test_writing_out_the_default_of_the_lanes_is_no_difference(recipe: Path):
    assert config_diff(load_config(recipe), load_config(recipe, ["batch.lanes=64"])) == []


def test_free_keys_pass_in_silence_and_logged_ones_are_reported(recipe: Path):
    new = load_config(recipe, ["limits.epochs=20", "optim.lr=1.0"])
    assert [difference.key for difference in check_resumable(load_config(recipe), new, "runs/tiny")] == ["optim.lr"]


def test_a_refused_key_stops_with_a_diff_and_the_way_out(recipe: Path):
    new = load_config(recipe, ["run.seed=2", "batch.visits=128"])
    with pytest.raises(ConfigError) as caught:
        check_resumable(load_config(recipe), new, "runs/tiny")
    lines = str(caught.value).splitlines()
    assert lines[0] == "runs/tiny: run.seed: was 1, is 2; this cannot change when a run goes on"
    assert "batch.visits: was 64, is 128" in lines[1]
    assert "--fresh" in lines[-1]
