"""ZeRO policies: what they may say, and what becomes of them together with a recipe's numbers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError
from trainer.engine import deepspeed_config
from trainer.engine.deepspeed_config import OWNED_BY_THE_RECIPE, read_policy, resolve, resolve_precision, zero_stage

SHIPPED = sorted((Path(__file__).parents[4] / "ds_configs").glob("*.json"))


def write(directory: Path, content: object) -> Path:
    path = directory / "zero2.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def resolved(policy: dict, **changes: object) -> dict:
    numbers = {"precision": "fp32", "visits": 12, "micro_visits": 3, "accumulation": 2, "world_size": 2}
    return resolve(policy, **(numbers | {"max_grad_norm": 1.0} | changes))


def test_there_is_a_shipped_policy_for_every_stage_named_after_it():
    assert [path.name for path in SHIPPED] == [f"zero{stage}.json" for stage in range(4)]
    assert [zero_stage(read_policy(path)) for path in SHIPPED] == [0, 1, 2, 3]


@pytest.mark.parametrize("key", OWNED_BY_THE_RECIPE)
def test_a_key_that_the_recipe_owns_is_refused_with_its_place(tmp_path, key):
    path = write(tmp_path, {"zero_optimization": {"stage": 2}, key: {}})
    with pytest.raises(ConfigError) as error:
        read_policy(path)
    assert str(error.value) == f"{path}: {key}: belongs to {OWNED_BY_THE_RECIPE[key]} in the recipe; remove it here"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"zero_optimisation": {"stage": 2}}, "zero_optimisation: not a key of a ZeRO policy; did you mean zero_opt"),
        (
            {"zero_optimization": {"stage": 2, "overlap_com": True}},
            "overlap_com: not supported here; did you mean over",
        ),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {}}}, "zero_optimization.offload_optimizer: not supp"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: expected 0, 1, 2 or 3, found 4"),
        ({"zero_optimization": {"stage": "1"}}, "zero_optimization.stage: expected 0, 1, 2 or 3, found '1'"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage: expected 0, 1, 2 or 3, found True"),
        ({"zero_optimization": {}}, "zero_optimization.stage: expected 0, 1, 2 or 3, found None"),
        ({"zero_optimization": True}, "zero_optimization: expected an object"),
        ({}, "zero_optimization: expected an object"),
        ([1], "expected an object with zero_optimization, found list"),
        ('{"zero_optimization": {"stage": 1, "stage": 3}}', "stage: given twice"),
        ('{"zero_optimization": ', "not valid JSON"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_by_name(tmp_path, content, said):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as error:
        read_policy(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_missing_policy_is_refused_with_the_place_to_look(tmp_path):
    with pytest.raises(ConfigError, match=r"none.json: cannot be read .*; name a file of ds_configs/"):
        read_policy(tmp_path / "none.json")


@given(micro=st.integers(1, 64), accumulation=st.integers(1, 16), world=st.integers(1, 256))
def test_the_three_batch_numbers_always_multiply_to_the_whole(micro, accumulation, world):
    visits = micro * accumulation * world
    config = resolved(
        {"zero_optimization": {"stage": 1}},
        visits=visits,
        micro_visits=micro,
        accumulation=accumulation,
        world_size=world,
    )
    per_rank = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == per_rank * world == visits


def test_batch_numbers_that_do_not_multiply_are_refused_with_the_product():
    with pytest.raises(
        ConfigError, match=r"batch.visits: 13 is not micro_visits 3 x accumulation 2 x world size 2 = 12"
    ):
        resolved({"zero_optimization": {"stage": 1}}, visits=13)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_exactly_the_precision_asked_for_is_switched_on(precision):
    config = resolved({"zero_optimization": {"stage": 1}}, precision=precision)
    on = {key for key in ("fp16", "bf16") if config.get(key, {}).get("enabled")}
    assert on == ({precision} - {"fp32"})


def test_fp16_scales_the_loss_dynamically():
    assert resolved({"zero_optimization": {"stage": 1}}, precision="fp16")["fp16"]["loss_scale"] == 0


def test_no_limit_of_the_gradient_norm_is_written_as_deepspeed_wants_it():
    assert resolved({"zero_optimization": {"stage": 1}}, max_grad_norm=None)["gradient_clipping"] == 0.0
    assert resolved({"zero_optimization": {"stage": 1}}, max_grad_norm=0.5)["gradient_clipping"] == 0.5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_policy_reaches_deepspeed_unchanged_and_is_not_changed_itself(path):
    policy = read_policy(path)
    config = resolved(policy, precision="fp16")
    config["zero_optimization"]["stage"] = "changed by DeepSpeed"
    assert policy == read_policy(path)
    assert resolved(policy)["zero_optimization"] == policy["zero_optimization"]


@pytest.mark.parametrize(("device", "expected"), [("cuda", "fp16"), ("cpu", "fp32")])
def test_auto_is_fp16_on_gpus_and_fp32_on_cpus(device, expected):
    assert resolve_precision("auto", device) == expected


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_precision_that_any_cpu_has_is_taken_as_asked(precision):
    assert resolve_precision(precision, "cpu") == precision


def test_fp16_is_refused_on_a_cpu_without_it_with_the_way_out(monkeypatch):
    monkeypatch.setattr(deepspeed_config, "_cpu_has_fp16", lambda: False)
    with pytest.raises(ConfigError, match=r"precision: fp16 needs a GPU.*use precision=auto"):
        resolve_precision("fp16", "cpu")


def test_fp16_is_taken_on_a_cpu_that_has_it(monkeypatch):
    monkeypatch.setattr(deepspeed_config, "_cpu_has_fp16", lambda: True)
    assert resolve_precision("fp16", "cpu") == "fp16"
