"""Bytes of the trained part by ZeRO stage and world size, against what the engine of a process alone holds."""

import pytest

from trainer.engine.state_memory import state_bytes

P = 1_000_000


def policy(stage: int, **zero: object) -> dict:
    return {"zero_optimization": {"stage": stage, **zero}}


def test_without_zero_in_fp32_the_optimizer_works_on_the_parameters_themselves() -> None:
    found = state_bytes(P, element_bytes=4, policy=policy(0), world_size=1)
    assert (found.parameters, found.gradients, found.master, found.moments) == (4 * P, 4 * P, 0, 8 * P)
    assert found.buffers == 0


def test_half_precision_is_sixteen_bytes_of_a_parameter() -> None:
    found = state_bytes(P, element_bytes=2, policy=policy(0), world_size=1)
    assert found.parameters + found.gradients + found.optimizer == 16 * P


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_share_what_their_stage_shares(stage: int) -> None:
    one, four = (state_bytes(P, element_bytes=2, policy=policy(stage), world_size=size) for size in (1, 4))
    assert four.optimizer == one.optimizer / 4
    assert four.gradients == one.gradients / (4 if stage >= 2 else 1)
    assert four.parameters == one.parameters / (4 if stage == 3 else 1)


def test_buckets_are_no_larger_than_what_they_carry() -> None:
    small, large = (
        state_bytes(P, element_bytes=4, policy=policy(1, reduce_bucket_size=size, overlap_comm=True), world_size=2)
        for size in (1000, 10**9)
    )
    assert small.buffers == 2 * 4 * 1000 + 4 * P // 2
    assert large.buffers == 2 * 4 * P + 4 * P // 2
