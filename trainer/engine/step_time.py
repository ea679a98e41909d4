"""How long an optimizer step takes on some hosts, from what is computed, what DeepSpeed sends, and what carries it.

Pure arithmetic. docs/scaling.md derives the formula and holds it against measured steps and counted bytes.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Bottleneck = Literal["compute", "update", "reduce", "gather", "latency"]

SMALL_COLLECTIVES = 3
"""Of a step, whatever its size: whether gradients are finite, their norm, and the sums of the loop."""
STAGE_0_BUCKET = 500_000_000
"""Elements that stage 0 reduces at a time, after the backward pass; no setting of a policy changes it."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What carries bytes between two ranks, in one direction; the other has as much."""

    bytes_per_second: float
    """Of payload: without headers, and what the library makes of the line."""
    latency_seconds: float = 0.0
    """From one rank to the next, for a message of no size."""
    gather_share: float = 1.0
    """Of `bytes_per_second`, when parameters are gathered: gloo gathers more slowly than it reduces."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Ranks on hosts. The ranks of a host share its network link."""

    hosts: int
    ranks_per_host: int
    network: Link
    """Between hosts: one for each host."""
    local: Link
    """Between neighbouring ranks of a host."""
    algorithm: Literal["ring", "tree"] = "ring"
    """How a message gets around: gloo's ring from rank to rank, or NCCL's tree over hosts. Bytes are the same."""

    @property
    def ranks(self) -> int:
        return self.hosts * self.ranks_per_host

    @property
    def link(self) -> Link:
        """At which a ring over all ranks moves. A ring leaves each host once, so a rank has its host's whole link."""
        return self.network if self.hosts > 1 else self.local

    @property
    def sweep_seconds(self) -> float:
        """Until something small that each rank has is known to all: half of an all-reduce."""
        if self.algorithm == "ring":
            across = min(self.hosts, self.ranks - 1) if self.hosts > 1 else 0
            return across * self.network.latency_seconds + (self.ranks - 1 - across) * self.local.latency_seconds
        inside = math.ceil(math.log2(self.ranks_per_host)) * self.local.latency_seconds
        return inside + math.ceil(math.log2(self.hosts)) * self.network.latency_seconds


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one rank computes for an optimizer step."""

    parameters: int
    """Trained ones: frozen towers are neither reduced nor gathered."""
    element_bytes: int
    """Of a gradient and of a parameter on the wire: 2 in fp16 and bf16, 4 in fp32."""
    micro_seconds: float
    """Forward and backward of a micro-batch, with as many ranks at work as there will be."""
    accumulation: int = 1
    """Micro-batches of a step."""
    update_seconds: float = 0.0
    """The optimizer's, for all parameters; under ZeRO a rank updates its share."""
    backward_share: float = 2 / 3
    """Of `micro_seconds`."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What of a ZeRO policy changes what is sent, or when."""

    stage: int
    reduce_bucket_elements: int = STAGE_0_BUCKET
    overlap: bool = False
    """Whether gradients are on their way while the backward pass goes on: `overlap_comm` on a GPU. Not at stage 0."""


class Traffic(NamedTuple):
    """What the collectives of a step move, whole tensors, however many ranks there are."""

    all_reduced: float
    """Bytes of tensors that are summed and left on all ranks: a ring sends 2 (n - 1) / n of them from each rank."""
    reduce_scattered: float
    """Bytes that are summed and left in parts: (n - 1) / n."""
    gathered: float
    """Bytes that are put together from parts: (n - 1) / n."""
    collectives: int

    def sent_bytes(self, ranks: int) -> float:
        """By each of `ranks` ranks, and by each host: the ring leaves it once."""
        return (2 * self.all_reduced + self.reduce_scattered + self.gathered) * (ranks - 1) / ranks


class StepTime(NamedTuple):
    """Seconds of a step by what they go to; what hides behind the backward pass costs none."""

    compute: float
    update: float
    reduce: float
    gather: float
    latency: float

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def efficiency(self) -> float:
        """Part of the step in which the model is computed."""
        return self.compute / self.total

    @property
    def bottleneck(self) -> Bottleneck:
        """What takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def traffic(work: Work, policy: Policy) -> Traffic:
    """What DeepSpeed 0.19 moves in a step.

    Stages 1 and 2 all-reduce every gradient and keep a part of it (`use_multi_rank_bucket_allreduce`, its default),
    although `reduce_scatter` is set, and then gather the parameters: 1.5 times what stage 0 sends. Stages 2 and 3
    reduce at every micro-step, and stage 3 gathers the parameters for each forward and each backward pass.
    """
    size = float(work.parameters * work.element_bytes)
    buckets = _buckets(work, policy)
    if policy.stage == 0:
        return Traffic(size, 0.0, 0.0, buckets)
    if policy.stage == 3:
        times = work.accumulation
        return Traffic(0.0, times * size, 2 * times * size, 3 * times * buckets)
    times = work.accumulation if policy.stage == 2 else 1
    return Traffic(times * size, 0.0, size, times * buckets + 1)


def step_time(work: Work, policy: Policy, cluster: Cluster) -> StepTime:
    """The step of `work` under a policy on a cluster."""
    compute = work.accumulation * work.micro_seconds
    update = work.update_seconds / (cluster.ranks if policy.stage else 1)
    if cluster.ranks == 1:
        return StepTime(compute, update, 0.0, 0.0, 0.0)
    moved = traffic(work, policy)
    share = (cluster.ranks - 1) / cluster.ranks / cluster.link.bytes_per_second
    reduce = (2 * moved.all_reduced + moved.reduce_scattered) * share
    gather = moved.gathered * share / cluster.link.gather_share
    latency = 2 * (moved.collectives + SMALL_COLLECTIVES) * cluster.sweep_seconds
    if policy.overlap and policy.stage > 0:
        passes = work.accumulation if policy.stage > 1 else 1
        reduce = passes * _exposed(reduce / passes, work, policy)
        if policy.stage == 3:
            gather = max(0.0, gather - compute)
    return StepTime(compute, update, reduce, gather, latency)


def _buckets(work: Work, policy: Policy) -> int:
    elements = STAGE_0_BUCKET if policy.stage == 0 else policy.reduce_bucket_elements
    return math.ceil(work.parameters / elements)


def _exposed(reduce: float, work: Work, policy: Policy) -> float:
    """What is left of a reduction behind a backward pass: a bucket starts when it is full, the last one at the end."""
    buckets = _buckets(work, policy)
    hidden = work.backward_share * work.micro_seconds * (buckets - 1) / buckets
    return max(reduce - hidden, reduce / buckets)
