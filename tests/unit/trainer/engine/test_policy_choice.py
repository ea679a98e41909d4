"""`engine.policy: auto`: each reason for a stage, and policies that DeepSpeed's configuration takes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.engine.deepspeed_config import read_policy
from trainer.engine.optimizers import WHOLE_PARAMETERS, OptimizerChoice
from trainer.engine.policy_choice import ASSUMED_LINK_GBITS, STATE_SHARE, Circumstances, choose_policy, state_bytes

GPUS = Circumstances(
    optimizer=OptimizerChoice(),
    parameters=38_000_000,
    element_bytes=2,
    accumulation=1,
    ranks=16,
    hosts=2,
    device_type="cuda",
    memory_bytes=80_000_000_000,
    link_gbits=100.0,
)
CPUS = replace(GPUS, device_type="cpu", element_bytes=4, ranks=2, link_gbits=1.0)


def test_gpus_on_a_fast_network_hide_the_reduction_behind_the_backward_pass():
    choice = choose_policy(GPUS)
    zero = choice.policy["zero_optimization"]
    assert (choice.stage, zero["overlap_comm"]) == (1, True)
    assert zero["reduce_bucket_size"] < GPUS.parameters / 2, "a single bucket hides nothing"


def test_the_document_shows_a_choice_as_it_is_said():
    document = (Path(__file__).parents[4] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert f"engine.policy: auto chose {choose_policy(GPUS)}\n" in document


def test_a_slow_network_takes_the_stage_that_sends_least():
    assert choose_policy(replace(GPUS, link_gbits=1.0)).stage == 0


def test_cpus_overlap_nothing_and_send_least():
    choice = choose_policy(CPUS)
    assert choice.policy == {"zero_optimization": {"stage": 0}}


@pytest.mark.parametrize("parameters", [10_000_000, 38_000_000, 70_000_000])
@pytest.mark.parametrize("link", [0.1, 1.0, 25.0, 100.0, 400.0])
def test_a_fusion_encoder_needs_no_higher_stage(parameters: int, link: float):
    assert choose_policy(replace(GPUS, parameters=parameters, link_gbits=link)).stage in (0, 1)


@pytest.mark.parametrize("name", ["muon", "lamb", "adafactor"])
def test_an_optimizer_of_whole_parameters_gets_them(name: str):
    choice = choose_policy(replace(GPUS, optimizer=OptimizerChoice(name=name)))
    assert name in WHOLE_PARAMETERS
    assert choice.stage == 0
    assert str(choice) == f"ZeRO-0: {name} needs whole parameters"


def test_an_option_that_looks_at_whole_parameters_counts_as_well():
    choice = choose_policy(replace(GPUS, optimizer=OptimizerChoice(name="nadamw", options={"caution": True})))
    assert choice.stage == 0


def test_one_rank_shares_nothing():
    assert choose_policy(replace(GPUS, ranks=1, hosts=1)).stage == 0


def test_the_lowest_stage_whose_state_fits_is_taken():
    stages = []
    for parameters in (10**8, 3 * 10**9, 6 * 10**9, 10**11):
        about = replace(GPUS, parameters=parameters)
        choice = choose_policy(about)
        room = STATE_SHARE * about.memory_bytes
        assert choice.stage == 3 or state_bytes(about, stage=choice.stage) <= room
        assert choice.stage <= 1 or state_bytes(about, stage=choice.stage - 1) > room
        stages.append(choice.stage)
    assert stages == [1, 1, 2, 3]
    assert "optimizer state would take more than 25% of 80 GB" in choice.reason


def test_state_is_that_of_adam_in_mixed_precision():
    one = replace(GPUS, parameters=1, ranks=4)
    assert [state_bytes(one, stage=stage) for stage in range(4)] == [20, 8, 6.5, 5]


def test_a_link_that_nobody_knows_is_said():
    choice = choose_policy(replace(GPUS, link_gbits=None))
    assert f"carries {ASSUMED_LINK_GBITS:g} Gbit/s (not known: set engine.link_gbits)" in str(choice)
    assert "not known" not in str(choose_policy(GPUS))


@pytest.mark.parametrize("about", [GPUS, CPUS, replace(GPUS, parameters=10**11), replace(GPUS, parameters=6 * 10**9)])
def test_a_choice_is_what_a_file_of_ds_configs_may_say(about: Circumstances, tmp_path: Path):
    choice = choose_policy(about)
    (tmp_path / "chosen.json").write_text(json.dumps(choice.policy))
    assert read_policy(tmp_path / "chosen.json") == choice.policy


def test_a_choice_is_one_line_and_the_same_every_time():
    assert "\n" not in str(choose_policy(GPUS))
    assert choose_policy(GPUS) == choose_policy(replace(GPUS))
