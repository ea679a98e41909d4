"""The engine under the real launcher: every ZeRO stage computes the same, resumes exactly and fails on all ranks."""

import pytest
import torch

from tests.distributed.toy import PRECISIONS, STAGES, Toy

pytestmark = pytest.mark.distributed

TRAINABLE = [name for name, _ in Toy(seed=1).named_parameters()]
KINDS = [f"{precision} stage {stage}" for precision in PRECISIONS for stage in STAGES]
LOW_PRECISION_TOLERANCE = 0.03


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_norms_are_the_same_for_every_stage_and_world_size(two_ranks, alone, stage):
    reference = alone["losses"][0]["fp32 stage 0"]
    for ranks in (two_ranks, alone):
        for result in ranks["losses"]:
            assert result[f"fp32 stage {stage}"]["losses"] == pytest.approx(reference["losses"], rel=1e-5)
            assert result[f"fp32 stage {stage}"]["norms"] == pytest.approx(reference["norms"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_follows_fp32_with_a_loss_scale_that_cancels_out(two_ranks, kind):
    reference, result = two_ranks["losses"][0]["fp32 stage 0"], two_ranks["losses"][0][kind]
    assert result["losses"] == pytest.approx(reference["losses"], rel=LOW_PRECISION_TOLERANCE)
    assert result["norms"] == pytest.approx(reference["norms"], rel=LOW_PRECISION_TOLERANCE)
    if kind.startswith("fp16"):
        assert result["scales"][-1] == 2 * result["scales"][0], "the scale should have grown within these steps"
    else:
        assert set(result["scales"]) == {1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_of_the_engine_are_the_trainable_parameters_and_all_of_them_move(two_ranks, kind):
    start = {name: parameter.flatten().tolist() for name, parameter in Toy(seed=1).named_parameters()}
    final = two_ranks["losses"][0][kind]["parameters"]
    assert sorted(final) == sorted(TRAINABLE)
    assert all(final[name] != start[name] for name in TRAINABLE)
    assert all(len(final[name]) == len(start[name]) for name in TRAINABLE)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_starts_from_the_modules_own_values_without_any_moments(two_ranks, kind):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind.split()[0]]
    start = two_ranks["losses"][0][kind]["start"]
    for name, parameter in Toy(seed=1).named_parameters():
        rounded = parameter.detach().to(dtype).float()
        assert start[f"parameters.{name}"] == rounded.numpy().tobytes().hex()
        assert set(start[f"exp_avg.{name}"]) == set(start[f"exp_avg_sq.{name}"]) == {"0"}
    assert start["step"] == start["skipped"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(two_ranks, kind):
    for result in two_ranks["resume"]:
        assert result[kind]["found"] == result[kind]["expected"]
        assert result[kind]["round trip"][0] == result[kind]["round trip"][1]
    final = two_ranks["resume"][0][kind]["expected"][1]
    assert final["step"] == 4, "every step should have been applied, or little was compared"


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_continues_at_any_stage_and_world_size(two_ranks, alone, stage):
    expected = two_ranks["elsewhere"][0]["1"]
    for ranks in (two_ranks, alone):
        for result in ranks["elsewhere"]:
            assert result[str(stage)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_on_one_rank_skips_the_step_on_all_and_changes_nothing(two_ranks, kind):
    for result in two_ranks["poisoned"]:
        assert result[kind]["same tensors"]
        assert result[kind]["update"]["applied"] is False
        assert result[kind]["update"]["grad_norm"] is None
        assert result[kind]["update"]["skipped_steps"] == 1
        assert result[kind]["clean"]["applied"] is True
        assert result[kind]["clean"]["skipped_steps"] == 1
    reference = two_ranks["poisoned"][0]["fp32 stage 1"]["clean"]["grad_norm"]
    assert result[kind]["clean"]["grad_norm"] == pytest.approx(reference, rel=2 * LOW_PRECISION_TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_a_parameter_without_gradient_is_named_on_all_ranks(two_ranks, alone, stage):
    for result in (*two_ranks["no_gradient"], *alone["no_gradient"]):
        assert "unused.weight, unused.bias in the first 1 optimizer step" in result[f"unused stage {stage}"]
        assert "no gradient reached down.weight in" in result[f"low rank stage {stage}"]
        assert result[f"low rank, patient stage {stage}"] is None


@pytest.mark.parametrize("stage", STAGES)
def test_evaluation_sees_the_exported_weights_and_leaves_training_as_it_was(two_ranks, stage):
    first, second = (result[str(stage)] for result in two_ranks["evaluation"])
    assert len(first["values"]) != len(second["values"]), "the ranks should have evaluated differently often"
    assert first["values"] + second["values"] == pytest.approx([first["plain"]] * 4, rel=1e-6)
    for result in (first, second):
        assert result["losses"] == result["undisturbed"]
        assert result["training"] is True


def test_a_state_of_another_model_is_refused_by_name_on_all_ranks(two_ranks):
    for message in two_ranks["mismatch"]:
        assert "2 parameters are missing from it (down.weight, up.weight)" in message


def test_a_checkpoint_that_cannot_be_written_is_reported_on_all_ranks(two_ranks, alone):
    messages = two_ranks["failed_save"]
    assert messages[0] == messages[1]
    assert "checkpoint not written" in messages[0]
    assert "checkpoint not written" in alone["failed_save"][0]


def test_nothing_that_is_never_compiled_costs_the_import_of_a_compiler(two_ranks, alone):
    assert [*two_ranks["imports"], *alone["imports"]] == [[], [], []]
