"""Steps over hosts with links of set rates, and what the formula says of them from the parts: compute, bytes, link."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from trainer.bench import namespaces
from trainer.bench.scaling_job import Answer, Collective, Job, Probe
from trainer.bench.scaling_pool import Pool, pool
from trainer.engine.step_time import Cluster, Link, Policy, Work, step_time, traffic

COLLECTIVES: tuple[Collective, ...] = ("reduce", "gather")
ELEMENT_BYTES = 4
"""A CPU reduces and gathers fp32."""


class Case(NamedTuple):
    """One kind of step in one place."""

    hosts: int
    ranks_per_host: int
    stage: int
    accumulation: int
    rate: str | None
    """Of each host's link, such as 100mbit; None has no limit."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the steps of a case took, and what they were predicted to take."""

    case: Case
    seconds: Sequence[float]
    """The median step of each round."""
    predicted_seconds: float
    link: Link | None
    """What the collectives by themselves made of the rate; None has no limit."""
    sent_bytes: float
    """By a host in a step, as its interface counts them."""
    predicted_bytes: float

    @property
    def ratio(self) -> float:
        """Predicted to measured."""
        return self.predicted_seconds / median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        return self.case._asdict() | {
            "seconds": median(self.seconds),
            "rounds": list(self.seconds),
            "predicted_seconds": self.predicted_seconds,
            "link": None if self.link is None else asdict(self.link),
            "ratio": self.ratio,
            "sent_bytes": self.sent_bytes,
            "predicted_bytes": self.predicted_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured."""

    hosts: Sequence[int]
    ranks_per_host: int
    rates: Sequence[str]
    stages: Sequence[int]
    accumulations: Sequence[int]
    width: int
    layers: int
    steps: int
    """In a round, of each case."""
    rounds: int


def measure_scaling(plan: Plan, progress: Callable[[str], None]) -> list[Measured]:
    """All cases of a plan: hosts one number after the other, everything else in alternating rounds.

    Raises:
        UserError: this process cannot make hosts.
        RankEndedError: a rank failed.
    """
    results = []
    for hosts in plan.hosts:
        with _ranks(hosts, plan.ranks_per_host) as (ranks, shape):
            progress(f"{hosts} host(s): {hosts * plan.ranks_per_host} rank(s) have met")
            results += _measure(hosts, plan, ranks, shape, progress)
    return results


@contextlib.contextmanager
def _ranks(hosts: int, ranks_per_host: int) -> Iterator[tuple[Pool, Callable[[str | None], None]]]:
    if hosts == 1:
        with pool([None], ranks_per_host=ranks_per_host) as ranks:
            yield ranks, lambda _: None
        return
    with namespaces.hosts(hosts) as made, pool(made, ranks_per_host=ranks_per_host) as ranks:
        yield ranks, lambda rate: namespaces.shape(made, None if rate is None else namespaces.parse_rate(rate))


def _measure(
    hosts: int, plan: Plan, ranks: Pool, shape: Callable[[str | None], None], progress: Callable[[str], None]
) -> list[Measured]:
    rates = (None, *plan.rates) if hosts > 1 else (None,)
    world_size = hosts * plan.ranks_per_host
    elements = plan.layers * plan.width * plan.width // 2 // world_size * world_size
    probed: dict[tuple[str, Collective], list[float]] = {}
    answers: dict[Case, list[list[Answer]]] = {}
    for number in range(plan.rounds):
        for rate in rates:
            shape(rate)
            for name in COLLECTIVES if rate is not None else ():
                took = ranks.probe(Probe(collective=name, elements=elements, times=plan.steps))
                probed.setdefault((rate, name), []).extend(took)
            for stage in plan.stages:
                for accumulation in plan.accumulations:
                    case = Case(hosts, plan.ranks_per_host, stage, accumulation, rate)
                    answers.setdefault(case, []).append(ranks.run(_job(plan, case)))
        progress(f"{hosts} host(s): round {number + 1} of {plan.rounds}")
    links: dict[str | None, Link | None] = {None: None}
    for rate in rates[1:]:
        reduce_seconds, gather_seconds = (median(probed[rate, name]) for name in COLLECTIVES)
        links[rate] = link_of(reduce_seconds, gather_seconds, elements, world_size)
    free = {case: median(_steps(rounds)) for case, rounds in answers.items() if case.rate is None}
    return [
        _measured(case, rounds, free[case._replace(rate=None)], links[case.rate]) for case, rounds in answers.items()
    ]


def _job(plan: Plan, case: Case) -> Job:
    return Job(stage=case.stage, accumulation=case.accumulation, steps=plan.steps, width=plan.width, layers=plan.layers)


def _steps(rounds: Sequence[Sequence[Answer]]) -> list[float]:
    """The median step of each round, on rank 0: the collectives keep the others beside it."""
    return [median(answers[0].seconds) for answers in rounds]


def _measured(case: Case, rounds: Sequence[Sequence[Answer]], free_seconds: float, link: Link | None) -> Measured:
    parameters = rounds[0][0].parameters
    sent = [answer.sent_bytes for answers in rounds for answer in answers[:: case.ranks_per_host]]
    return Measured(
        case=case,
        seconds=_steps(rounds),
        predicted_seconds=predict(case, parameters, free_seconds, link),
        link=link,
        sent_bytes=median(sent),
        predicted_bytes=predicted_bytes(case, parameters),
    )


def link_of(reduce_seconds: float, gather_seconds: float, elements: int, ranks: int) -> Link:
    """What a ring makes of a link, from an all-reduce and an all-gather of so many elements over all ranks."""
    sent = elements * ELEMENT_BYTES * (ranks - 1) / ranks
    return Link(bytes_per_second=2 * sent / reduce_seconds, gather_share=reduce_seconds / gather_seconds / 2)


def predict(case: Case, parameters: int, free_seconds: float, link: Link | None) -> float:
    """Seconds of a step: the same step on as many ranks without a limit, and the time of what it sends.

    The ranks share this machine's cores, so what they compute is measured with all of them at work. That step also
    copies what is sent from process to process, which a slow link leaves time for: the sum is a little too long.

    Args:
        free_seconds: of the step without a limit.
        link: what the collectives make of the rate; None has no limit.
    """
    if link is None:
        return free_seconds
    work = Work(
        parameters=parameters,
        element_bytes=ELEMENT_BYTES,
        micro_seconds=free_seconds / case.accumulation,
        accumulation=case.accumulation,
    )
    cluster = Cluster(hosts=case.hosts, ranks_per_host=case.ranks_per_host, network=link, local=link)
    return step_time(work, _policy(case), cluster).total


def predicted_bytes(case: Case, parameters: int) -> float:
    """What a host sends in a step."""
    if case.hosts == 1:
        return 0.0
    work = Work(parameters=parameters, element_bytes=ELEMENT_BYTES, micro_seconds=0.0, accumulation=case.accumulation)
    return traffic(work, _policy(case)).sent_bytes(case.hosts * case.ranks_per_host)


def _policy(case: Case) -> Policy:
    """Nothing overlaps on a CPU: its collectives are done when they return."""
    return Policy(stage=case.stage)
