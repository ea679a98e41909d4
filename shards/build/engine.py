"""Who packs the samples of a build: processes of this machine, or the workers of a Ray cluster. One way of packing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from shards.build.build_request import BuildRequest
from shards.build.packing import Packed, Source, Task, Unusable, fingerprint, map_in_order, pack


class Engine(Protocol):
    """Does independent work in any order, and gives the results in the order of the work."""

    def pack(self, tasks: Iterable[Task], staging: Path) -> Iterator[Packed | Unusable]:
        """`packing.pack` of every task; `close` of the iterator ends what is still at work.

        Args:
            tasks: taken as results are asked for.
            staging: a directory of the build for what is not finished; whatever is left in it is removed with it.

        Raises:
            UserError: as `packing.pack`, or what does the work is lost.
        """
        ...

    def fingerprints(self, sources: Iterable[Source]) -> Iterator[str]:
        """`packing.fingerprint` of every sample; writes nothing."""
        ...


class Processes(NamedTuple):
    """Processes of this machine; with 0 or 1 the work is done here."""

    workers: int

    def pack(self, tasks: Iterable[Task], staging: Path) -> Iterator[Packed | Unusable]:  # noqa: ARG002 - pipes do
        return map_in_order(pack, tasks, self.workers)

    def fingerprints(self, sources: Iterable[Source]) -> Iterator[str]:
        return map_in_order(fingerprint, sources, self.workers)


@contextmanager
def open_engine(request: BuildRequest) -> Iterator[Engine]:
    """The engine that a request names, ready to work.

    Raises:
        UserError: there is no Ray cluster, or it cannot do this work.
    """
    if request.engine == "local":
        yield Processes(request.workers)
        return
    from shards.build.ray_engine import connected  # Ray is an extra, and takes a second to import

    with connected(request.ray_address, request.workers, show=request.show_progress) as engine:
        yield engine
