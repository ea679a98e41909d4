"""Where the time of training goes, and the one word that says what bounds it: arithmetic over clocks.

A step of a rank is cut into four: it waits for *data*, for the *network* (collectives, and with them slower ranks), it
*computes*, and the rest is its *host*: the loop, logging, saving. Work on a GPU goes on while the host is ahead; so
there the time in which the host launches work belongs to the GPU as long as the host has to wait for it in the end, and
else to the host, which is then too slow for it.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

Bound = Literal["compute", "data", "network", "host"]
Item = TypeVar("Item")

STARVED = 0.1
"""Part of the time that is waited for workers which prepare ahead, from which on they are what is slowest: those that
keep pace are waited for at the start of an epoch alone."""
DRAINED = 0.02
"""Part of a GPU's time that the host waits for it at the end of a step; with less, the GPU waits for the host."""


class Seconds(NamedTuple):
    """Seconds since the last agreement, and the operations in them; of one rank, or added up over ranks and steps."""

    wall: float = 0.0
    data: float = 0.0
    network: float = 0.0
    """In collectives; those of the engine lie within `launch`."""
    launch: float = 0.0
    """In forward, backward and optimizer: all of their time on a CPU, that of launching them on a GPU."""
    drain: float = 0.0
    """Until the device had done everything that was launched."""
    network_in_launch: float = 0.0
    flops: float = 0.0


class Limits(NamedTuple):
    """What the time since the last report went to, as parts of 1 that add up to 1, over all ranks."""

    bound_by: Bound
    compute: float
    data: float
    network: float
    host: float
    mfu: float | None
    """Operations of the model as a part of what large matrix products reach here; None where they have no closed form.
    Recomputed activations are not the model's."""

    def as_metrics(self) -> dict[str, float | str]:
        """By their names in metrics.jsonl."""
        shares = {f"speed/{name}_share": getattr(self, name) for name in ("compute", "data", "network", "host")}
        found: dict[str, float | str] = {"speed/bound_by": self.bound_by, **shares}
        return found if self.mfu is None else found | {"speed/mfu": self.mfu}


def limits(spent: Seconds, *, peak: float | None, ranks: int, ahead: bool, asynchronous: bool) -> Limits | None:
    """What bounds a run that has spent its time so; None where no time has passed.

    Args:
        spent: added up over ranks.
        peak: operations per second that all ranks together can do; None without a closed form of what they do.
        ahead: workers prepare data while a step is computed.
        asynchronous: the device computes while the host goes on.
    """
    if spent.wall <= 0:
        return None
    compute = max(0.0, spent.launch + spent.drain - spent.network_in_launch)
    if asynchronous and spent.drain < DRAINED * (spent.launch + spent.drain):
        compute = spent.drain
    parts = {"compute": compute, "data": spent.data, "network": spent.network}
    shares = {name: min(1.0, seconds / spent.wall) for name, seconds in parts.items()}
    shares["host"] = max(0.0, 1.0 - sum(shares.values()))
    bound: Any = max(shares, key=lambda name: shares[name])
    if ahead and shares["data"] >= STARVED:
        bound = "data"
    mfu = None if peak is None else spent.flops / (spent.wall / ranks * peak)
    return Limits(bound, **shares, mfu=mfu)


@dataclass(kw_only=True)
class Gauge:
    """Reads the clocks of a rank. A step costs some twenty readings, and its numbers travel with the sums of the loop.

    It asks no device anything: what a GPU has done is known when the loop waits for its sums anyway.
    """

    flops: Callable[[Any], float] | None = None
    """Operations of a micro-batch; None where they have no closed form."""
    peak: float | None = None
    """Operations per second of all ranks."""
    ranks: int = 1
    ahead: bool = False
    asynchronous: bool = False
    engine_network: Callable[[], float] = lambda: 0.0
    """Seconds that the engine has spent in collectives since it was asked last."""
    clock: Callable[[], float] = time.perf_counter
    latest: Limits | None = field(default=None, init=False)
    """Of the last report."""
    _lap: float | None = field(default=None, init=False)
    _own: dict[str, float] = field(default_factory=lambda: dict.fromkeys(Seconds._fields, 0.0), init=False)
    _window: Seconds = field(default=Seconds(), init=False)

    def start(self) -> None:
        """Time counts from here: what was done before it is no training step."""
        self._own = dict.fromkeys(Seconds._fields, 0.0)
        self.engine_network()
        self._lap = self.clock()

    def reading(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; what they let wait for them is time for data."""
        items = iter(items)
        while True:
            began = self.clock()
            item = next(items, None)
            self._own["data"] += self.clock() - began
            if item is None:
                return
            yield item

    @contextmanager
    def computing(self, batch: Any) -> Iterator[None]:
        """Forward and backward of a micro-batch."""
        if self.flops is not None:
            self._own["flops"] += self.flops(batch)
        with self._timed("launch"):
            yield

    def updating(self) -> Any:
        """The engine's step behind a micro-batch: behind the last one of a step the optimizer's."""
        return self._timed("launch")

    def draining(self) -> Any:
        """Waiting for the device: for the gradients of a step, which the optimizer looks at, and for its sums."""
        return self._timed("drain")

    def agreeing(self) -> Any:
        """The loop's own collective, which waits for the slowest rank."""
        return self._timed("network")

    def own(self) -> list[float]:
        """This rank's seconds since it was asked last, to be added up over ranks."""
        now = self.clock()
        began, self._lap = self._lap, now
        inside = self.engine_network()
        own = Seconds(**self._own)
        self._own = dict.fromkeys(Seconds._fields, 0.0)
        wall = 0.0 if began is None else now - began
        return list(own._replace(wall=wall, network=own.network + inside, network_in_launch=inside))

    def add(self, summed: Iterable[float]) -> None:
        """Take in what all ranks have spent on a step."""
        self._window = Seconds(*(before + more for before, more in zip(self._window, summed, strict=True)))

    def take(self) -> Limits | None:
        """What bounds the steps since it was asked last."""
        spent, self._window = self._window, Seconds()
        found = limits(spent, peak=self.peak, ranks=self.ranks, ahead=self.ahead, asynchronous=self.asynchronous)
        self.latest = found or self.latest
        return found

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = self.clock()
        try:
            yield
        finally:
            self._own[name] += self.clock() - began
