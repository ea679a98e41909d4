"""What steps would take on clusters of 8 GPUs a node: the formula's word, nothing measured."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from trainer.engine.policy_choice import BUCKETS
from trainer.engine.step_time import Cluster, Link, Policy, StepTime, Work, step_time

COMPUTE_SECONDS = 0.06
"""Assumed: forward and backward of a micro-batch on one GPU, such as 256 questions of 50 GFLOP at 210 TFLOP/s."""
PAYLOAD_SHARE = 0.9
"""Assumed: of a line's rate, in large messages."""
NETWORK_LATENCY_SECONDS, LOCAL_LATENCY_SECONDS = 20e-6, 5e-6
"""Assumed: from host to host, and from GPU to GPU."""
LOCAL_BYTES_PER_SECOND = 100e9
"""Assumed: a ring over the GPUs of a node."""
UPDATE_SECONDS = 2e-11
"""Assumed: AdamW's for a parameter, some 32 bytes of a memory of 1.6 TB/s."""

PARAMETERS = (10_000_000, 38_000_000, 70_000_000)
NODES = (1, 2, 4, 8, 16, 32, 64)
GPUS = 8
GBITS = (25, 100, 400)
DEFAULT_POLICY = Policy(stage=1, reduce_bucket_elements=10_000_000, overlap=True)
"""ds_configs/zero1.json"""
_ENOUGH = 0.9
"""Of a step, for the model: nothing more is proposed."""
_WORTH = 0.02
"""Of a step: a setting that saves less is not proposed."""
_ACCUMULATIONS = (1, 2, 4, 8, 16, 32)


class Predicted(NamedTuple):
    """A step under the default policy, and what would make it better."""

    parameters: int
    nodes: int
    gbits: int
    time: StepTime
    setting: str
    """The policy that saves most if it saves enough, then the accumulation that leaves the model most of a step."""


def predict_clusters(compute_seconds: float) -> list[Predicted]:
    """Steps of fp16 gradients on every cluster of the table."""
    return [
        _predict(_work(parameters, compute_seconds), nodes, gbits)
        for parameters in PARAMETERS
        for nodes in NODES
        for gbits in GBITS
    ]


def table(predicted: Sequence[Predicted]) -> str:
    """Markdown: one table for each number of parameters."""
    return "\n\n".join("\n".join(_table_of(parameters, predicted)) for parameters in PARAMETERS)


def as_json(predicted: Sequence[Predicted]) -> dict[str, Any]:
    return {
        "clusters": [
            {
                "parameters": row.parameters,
                "nodes": row.nodes,
                "gbits": row.gbits,
                **row.time._asdict(),
                "total": row.time.total,
                "efficiency": row.time.efficiency,
                "bottleneck": row.time.bottleneck,
                "setting": row.setting,
            }
            for row in predicted
        ]
    }


def cluster_of(nodes: int, gbits: float) -> Cluster:
    """Nodes of 8 GPUs, each node with one link."""
    return Cluster(
        hosts=nodes,
        ranks_per_host=GPUS,
        network=Link(bytes_per_second=gbits * 1e9 / 8 * PAYLOAD_SHARE, latency_seconds=NETWORK_LATENCY_SECONDS),
        local=Link(bytes_per_second=LOCAL_BYTES_PER_SECOND, latency_seconds=LOCAL_LATENCY_SECONDS),
        algorithm="tree",
    )


def _work(parameters: int, compute_seconds: float) -> Work:
    return Work(
        parameters=parameters,
        element_bytes=2,
        micro_seconds=compute_seconds,
        update_seconds=parameters * UPDATE_SECONDS,
    )


def _predict(work: Work, nodes: int, gbits: int) -> Predicted:
    cluster = cluster_of(nodes, gbits)
    time = step_time(work, DEFAULT_POLICY, cluster)
    policies = [Policy(stage=0), *(replace(DEFAULT_POLICY, reduce_bucket_elements=bucket) for bucket in BUCKETS)]
    best = min(policies, key=lambda policy: step_time(work, policy, cluster).total)
    if time.total - step_time(work, best, cluster).total < _WORTH * time.total:
        best = DEFAULT_POLICY
    enough = [count for count in _ACCUMULATIONS if _efficiency(work, best, cluster, count) >= _ENOUGH]
    count = min(enough, default=_ACCUMULATIONS[-1])
    settings = [*(() if best == DEFAULT_POLICY else (_name(best),)), *((f"accumulate {count}",) if count > 1 else ())]
    return Predicted(work.parameters, nodes, gbits, time, ", ".join(settings))


def _efficiency(work: Work, policy: Policy, cluster: Cluster, accumulation: int) -> float:
    return step_time(replace(work, accumulation=accumulation), policy, cluster).efficiency


def _name(policy: Policy) -> str:
    return "stage 0" if policy.stage == 0 else f"buckets {policy.reduce_bucket_elements / 1e6:g}M"


def _table_of(parameters: int, predicted: Sequence[Predicted]) -> Iterator[str]:
    yield f"| {parameters / 1e6:g} M trained, nodes | " + " | ".join(f"{gbits} Gbit/s" for gbits in GBITS) + " |"
    yield "|---|" + "---|" * len(GBITS)
    for nodes in NODES:
        rows = [row for row in predicted if (row.parameters, row.nodes) == (parameters, nodes)]
        yield f"| {nodes} | " + " | ".join(_cell(row) for row in rows) + " |"


def _cell(row: Predicted) -> str:
    """`106.6 ms, 56 %, gather: buckets 2.5M, accumulate 8`"""
    told = f"{1e3 * row.time.total:.1f} ms, {100 * row.time.efficiency:.0f} %, {_bottleneck(row.time)}"
    return f"{told}: {row.setting}" if row.setting else told


def _bottleneck(time: StepTime) -> str:
    """What a step waits for most; the model itself, where that is nearly all of a step."""
    return "compute" if time.efficiency >= _ENOUGH else time._replace(compute=0.0).bottleneck
