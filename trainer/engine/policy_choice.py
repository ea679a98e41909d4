"""`engine.policy: auto`: ZeRO stage, buckets and overlap from what a run trains, and from what carries its gradients.

Pure: the same circumstances give the same policy at every start.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from shards.errors import ConfigError
from trainer.engine.optimizers import OptimizerChoice, check_stage
from trainer.engine.step_time import Cluster, Link, Policy, StepTime, Work, step_time

AUTO = "auto"
"""In the place of a policy's file."""

BUCKETS = (1_000_000, 2_500_000, 5_000_000, 10_000_000)
"""Elements. Smaller ones cost more messages than they hide; of larger ones a fusion encoder has no second."""

STATE_SHARE = 0.25
"""Of a rank's memory, for what the optimizer keeps: the rest is for activations and frozen towers."""

ASSUMED_MICRO_SECONDS = 0.06
"""Of a micro-batch on a GPU, forward and backward: nothing has been computed when the policy is chosen."""
ASSUMED_LINK_GBITS = 25.0
"""Of a host's network, where neither the recipe nor the system knows."""
_PAYLOAD_SHARE = 0.9
"""Of a line's rate, in large messages."""
_TREE_NETWORK_SECONDS, _RING_NETWORK_SECONDS = 20e-6, 200e-6
"""From host to host: NCCL's, and gloo's over TCP."""
_GPU_LINK = Link(bytes_per_second=100e9, latency_seconds=5e-6)
_CPU_LINK = Link(bytes_per_second=1e9, latency_seconds=50e-6)
_GPU_UPDATE_SECONDS, _CPU_UPDATE_SECONDS = 2e-11, 5e-9
"""AdamW's, for a parameter: some 32 bytes of traffic on a GPU; on one thread of a CPU 4 to 9 ns were measured."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a choice depends on. All ranks are told the same."""

    optimizer: OptimizerChoice
    parameters: int
    """Trained ones."""
    element_bytes: int
    """Of a parameter and a gradient as they are computed: 2 in fp16 and bf16, 4 in fp32."""
    accumulation: int
    ranks: int
    hosts: int
    device_type: str
    """cuda or cpu."""
    memory_bytes: int
    """Of the rank that has the least."""
    link_gbits: float | None
    """Of the host whose network carries least; None is not known."""


class Choice(NamedTuple):
    """A policy, as a file of ds_configs/ would say it, and why."""

    policy: dict[str, Any]
    reason: str

    @property
    def stage(self) -> int:
        return self.policy["zero_optimization"]["stage"]

    def __str__(self) -> str:
        zero = self.policy["zero_optimization"]
        bucket = f", buckets of {zero['reduce_bucket_size']:,}" if "reduce_bucket_size" in zero else ""
        overlap = ", overlapped" if zero.get("overlap_comm") else ""
        return f"ZeRO-{self.stage}{bucket}{overlap}: {self.reason}"


def choose_policy(about: Circumstances) -> Choice:
    """The policy with the shortest predicted step among those that the optimizer and the memory allow."""
    try:
        check_stage(about.optimizer, 1)
    except ConfigError:
        return Choice(_as_file(Policy(stage=0)), f"{about.optimizer.name} needs whole parameters")
    if about.ranks == 1:
        return Choice(_as_file(Policy(stage=0)), "one rank has nobody to share anything with")
    room = STATE_SHARE * about.memory_bytes
    if state_bytes(about, stage=0) > room:
        return _by_memory(about, room)
    times = {policy: predicted(about, policy) for policy in _candidates(about)}
    best = min(times, key=lambda policy: times[policy].total)
    other = min((policy for policy in times if policy.stage != best.stage), key=lambda policy: times[policy].total)
    return Choice(
        _as_file(best),
        f"{_milliseconds(times[best])} a step beside the model's own, and {_milliseconds(times[other])} at stage "
        f"{other.stage}, if {_assumed(about)}",
    )


def predicted(about: Circumstances, policy: Policy) -> StepTime:
    """A step of a run under a policy; what the model computes is assumed."""
    on_gpu = about.device_type == "cuda"
    work = Work(
        parameters=about.parameters,
        element_bytes=about.element_bytes,
        micro_seconds=ASSUMED_MICRO_SECONDS,
        accumulation=about.accumulation,
        update_seconds=about.parameters * (_GPU_UPDATE_SECONDS if on_gpu else _CPU_UPDATE_SECONDS),
    )
    network = Link(
        bytes_per_second=_gbits(about) * 1e9 / 8 * _PAYLOAD_SHARE,
        latency_seconds=_TREE_NETWORK_SECONDS if on_gpu else _RING_NETWORK_SECONDS,
    )
    cluster = Cluster(
        hosts=about.hosts,
        ranks_per_host=-(-about.ranks // about.hosts),
        network=network,
        local=_GPU_LINK if on_gpu else _CPU_LINK,
        algorithm="tree" if on_gpu else "ring",
    )
    return step_time(work, policy, cluster)


def state_bytes(about: Circumstances, *, stage: int) -> float:
    """What a rank keeps of the trained part: parameters, gradients, fp32 master copies and two moments."""
    half = about.element_bytes == 2
    parts = {"parameters": about.element_bytes, "gradients": about.element_bytes, "optimizer": 16 if half else 8}
    shared = ((), ("optimizer",), ("optimizer", "gradients"), tuple(parts))[stage]
    return about.parameters * sum(size / (about.ranks if name in shared else 1) for name, size in parts.items())


def _by_memory(about: Circumstances, room: float) -> Choice:
    """The lowest stage whose state fits; the next ones send more."""
    stage = next((stage for stage in (1, 2) if state_bytes(about, stage=stage) <= room), 3)
    policy = min(_candidates(about, stage), key=lambda policy: predicted(about, policy).total)
    kept = state_bytes(about, stage=0) / 1e9
    return Choice(
        _as_file(policy),
        f"{kept:.1f} GB of optimizer state would take more than {STATE_SHARE:.0%} of {about.memory_bytes / 1e9:.0f} GB "
        "on each rank",
    )


def _candidates(about: Circumstances, *stages: int) -> list[Policy]:
    overlap = about.device_type == "cuda"  # a collective of a CPU is done when it returns
    buckets = BUCKETS if overlap else BUCKETS[-1:]
    return [
        policy
        for stage in stages or (0, 1)
        for policy in (
            [Policy(stage=0)]
            if stage == 0
            else [Policy(stage=stage, reduce_bucket_elements=bucket, overlap=overlap) for bucket in buckets]
        )
    ]


def _as_file(policy: Policy) -> dict[str, Any]:
    if policy.stage == 0:
        return {"zero_optimization": {"stage": 0}}
    zero = {
        "stage": policy.stage,
        "overlap_comm": policy.overlap,
        "contiguous_gradients": True,
        "reduce_bucket_size": policy.reduce_bucket_elements,
    }
    if policy.stage == 3:
        zero["memory_efficient_linear"] = False  # ds_configs/README.md says why
    return {"zero_optimization": zero}


def _gbits(about: Circumstances) -> float:
    return ASSUMED_LINK_GBITS if about.link_gbits is None else about.link_gbits


def _milliseconds(time: StepTime) -> str:
    return f"{1e3 * (time.total - time.compute):.1f} ms"


def _assumed(about: Circumstances) -> str:
    """What the prediction was told: who knows better can set it, or name a file."""
    parts = []
    if about.hosts > 1:
        known = "" if about.link_gbits is not None else " (not known: set engine.link_gbits)"
        parts.append(f"a host's link carries {_gbits(about):g} Gbit/s{known}")
    if about.device_type == "cuda":
        parts.append(f"a micro-batch takes {1e3 * ASSUMED_MICRO_SECONDS:g} ms")
    return " and ".join(parts) or "ranks share this machine's memory"
