"""Bytes that the trained part takes on a rank beside activations, by ZeRO stage and world size. Pure arithmetic.

docs/performance.md holds it against measured peaks. What DeepSpeed 0.19 keeps, read from its sources: at stage 0 in
fp32 nothing of its own; in half precision, and at every other stage, flat fp32 master copies beside the parameters.
"""

from typing import Any, NamedTuple

MASTER_BYTES = 4
"""Of an fp32 master copy, and of each of a moment's values."""


class StateBytes(NamedTuple):
    """Bytes on one rank."""

    parameters: int
    """As the module computes with them."""
    gradients: int
    master: int
    """fp32 copies that the optimizer works on; 0 where it works on the parameters themselves."""
    moments: int
    buffers: int
    """Gradients on their way to other ranks, and into the optimizer."""

    @property
    def optimizer(self) -> int:
        """Master copies and moments: what ZeRO-1 shares between ranks."""
        return self.master + self.moments

    @property
    def total(self) -> int:
        return sum(self)


def state_bytes(
    parameters: int,
    *,
    element_bytes: int,
    policy: dict[str, Any],
    world_size: int,
    moments: int = 2,
) -> StateBytes:
    """What a rank keeps of `parameters` trained values under a policy.

    Args:
        element_bytes: of a parameter in the module: 2 in fp16 and bf16, 4 in fp32.
        policy: from `read_policy`.
        moments: values that the optimizer keeps of each parameter.
    """
    zero = policy["zero_optimization"]
    stage = zero["stage"]
    own = -(-parameters // world_size)
    whole, shared = parameters * element_bytes, own * element_bytes
    has_master = stage > 0 or element_bytes < MASTER_BYTES
    kept = own if stage > 0 else parameters
    bucket = min(zero.get("reduce_bucket_size", parameters), parameters) * element_bytes
    on_the_way = (2 if zero.get("overlap_comm") else 1) * bucket if stage > 0 else (whole if world_size > 1 else 0)
    return StateBytes(
        parameters=shared if stage == 3 else whole,
        gradients=shared if stage >= 2 else whole,
        master=kept * MASTER_BYTES if has_master else 0,
        moments=moments * kept * MASTER_BYTES,
        buffers=on_the_way + (own * MASTER_BYTES if stage > 0 else 0),
    )
