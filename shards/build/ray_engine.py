"""A build on a Ray cluster that runs already: parts are tasks, their bytes go through a disk that all nodes share."""

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shards.build import node_code
from shards.build.node_sight import Sight, arrived, look, sight_of
from shards.build.packing import AHEAD, Packed, Source, Task, Unusable, fingerprint
from shards.build.part_files import Part, pack_part, take_up
from shards.errors import UserError
from shards.progress import say

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray.exceptions import GetTimeoutError, NodeDiedError, RayError, RayTaskError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise UserError("--engine ray: Ray is not installed; pip install 'duoflow[ray]', here and on every node") from None

SAMPLES = 32
"""Samples in a part: what a killed worker costs, against a few milliseconds for each task."""
RETRIES = 3
"""How often a part is begun again after its worker or its node died."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 300.0
"""How long a node may take to start a worker that looks round."""
CANCEL_SECONDS = 30.0
_START = "start one with `ray start --head` and join nodes to it, or name it (--ray-address HOST:PORT, RAY_ADDRESS)"

P = TypeVar("P")
R = TypeVar("R")


@contextmanager
def connected(address: str | None, workers: int, *, show: bool) -> Iterator["RayEngine"]:
    """Join a cluster that runs already, for as long as the context lasts.

    Args:
        address: HOST:PORT; None takes RAY_ADDRESS, or the cluster of this machine.
        workers: parts at a time; 0: as many as the cluster has CPUs.
        show: say it when a part has to be done again.

    Raises:
        UserError: there is no cluster, it is of another version, or a node would run other code.
    """
    if ray.is_initialized():
        yield _engine(workers, show=show)
        return
    _join(_answering(address or os.environ.get("RAY_ADDRESS") or "auto"))
    try:
        yield _engine(workers, show=show)
    finally:
        ray.shutdown()


class RayEngine:
    """See `engine.Engine`. The driver writes the tars; decoding and encoding of images is what the cluster does."""

    def __init__(self, workers: int, *, show: bool) -> None:
        self._workers = workers
        self._show = show
        self._checked: set[str] = set()
        self._sight: Sight | None = None

    def pack(self, tasks: Iterable[Task], staging: Path) -> Iterator[Packed | Unusable]:
        directory = staging / "parts"
        directory.mkdir()
        parts = (Part(number, run, directory) for number, run in enumerate(_runs(tasks)))
        for part, packed in self._in_order(pack_part, parts, lambda part: sight_of(part.tasks[0].source, directory)):
            yield from take_up(packed, part, self._say)

    def fingerprints(self, sources: Iterable[Source]) -> Iterator[str]:
        for _, marks in self._in_order(_fingerprints, _runs(sources), lambda run: sight_of(run[0], None)):
            yield from marks

    def check(self, nodes: Iterable["_Node"]) -> None:
        """Refuse nodes that would make other bytes, or that do not see what this one sees.

        Raises:
            UserError: one line with the name of the first such node.
        """
        nodes = list(nodes)
        # A node may lack the package: pickled by name, the function could not even say so.
        ray.cloudpickle.register_pickle_by_value(node_code)
        asked = (node_code.PACKAGE, node_code.LIBRARIES)
        here = node_code.code_facts(*asked)
        alive = set()
        for node, there in _answers(node_code.code_facts, asked, nodes):
            alive.add(node.id)
            for name, expected in here.items():
                if there[name] != expected:
                    raise UserError(
                        f"node {node.name}: {name}: {there[name]} there, {expected} here; install the same on every "
                        "node (or run from a checkout that all nodes see): other code may write other bytes"
                    )
        sight = self._sight
        for node, seen in _answers(look, (sight,), nodes) if sight is not None else ():
            fault = arrived(sight, seen)
            if fault is not None:
                raise UserError(
                    f"node {node.name}: {fault}; every node has to see --images and --out: mount them there, or take "
                    "the node out of the cluster"
                )
        self._checked |= alive

    def _in_order(
        self, function: Callable[[P], R], parts: Iterable[P], sight: Callable[[P], Sight]
    ) -> Iterator[tuple[P, R]]:
        """(part, result) in the order of the parts; a part whose worker or node dies is begun again elsewhere."""
        task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(_on_node)
        left = iter(parts)
        pending: deque[tuple[P, Any]] = deque()
        running: set[Any] = set()
        try:
            while True:
                # What is done and waits for its turn counts too: its file takes up room.
                free = max(0, min(self._workers - len(running), self._workers * AHEAD - len(pending)))
                for part in islice(left, free):
                    if self._sight is None:
                        self._sight = sight(part)
                        self.check(_nodes())
                    pending.append((part, task.remote(function, part)))
                    running.add(pending[-1][1])
                if not pending:
                    return
                if pending[0][1] in running:
                    running.difference_update(ray.wait(list(running))[0])
                    continue
                part, reference = pending.popleft()
                node_id, result = _result(reference)
                if node_id not in self._checked:  # it came later
                    self.check(node for node in _nodes() if node.id == node_id)
                if node_id in self._checked:
                    yield part, result
                    continue
                pending.appendleft((part, task.remote(function, part)))  # it came, and went before it could be asked
                running.add(pending[0][1])
        finally:
            self._sight = None
            _cancel([reference for _, reference in pending])

    def _say(self, text: str) -> None:
        if self._show:
            say(text, error=True)


class _Node(NamedTuple):
    id: str
    name: str
    cpus: int


def _nodes() -> list[_Node]:
    """Nodes that parts may run on."""
    return [
        _Node(node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeName']})", int(node["Resources"]["CPU"]))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]


def _engine(workers: int, *, show: bool) -> RayEngine:
    nodes = _nodes()
    cpus = sum(node.cpus for node in nodes)
    if not nodes:
        raise UserError("--engine ray: no node of the cluster has a CPU for this; add one with `ray start --address`")
    engine = RayEngine(min(workers, cpus) or cpus, show=show)
    engine.check(nodes)
    return engine


def _on_node(function: Callable[[P], R], part: P) -> tuple[str, R]:
    return ray.get_runtime_context().get_node_id(), function(part)


def _fingerprints(sources: list[Source]) -> list[str]:
    return [fingerprint(source) for source in sources]


def _runs(items: Iterable[P]) -> Iterator[list[P]]:
    left = iter(items)
    while run := list(islice(left, SAMPLES)):
        yield run


def _answers(function: Callable[..., R], arguments: tuple[Any, ...], nodes: list[_Node]) -> list[tuple[_Node, R]]:
    """What a function returns on each node; a node that died meanwhile has no answer, and is not asked for one."""
    references = [
        ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))(
            function
        ).remote(*arguments)
        for node in nodes
    ]
    ray.wait(references, num_returns=len(references), timeout=ANSWER_SECONDS)
    answers = []
    for node, reference in zip(nodes, references, strict=True):
        try:
            answers.append((node, ray.get(reference, timeout=0)))
        except (NodeDiedError, TaskUnschedulableError):  # Ray lists a node for some seconds after its death
            continue
        except RayTaskError:
            raise
        except RayError as error:
            _cancel(references)
            late = isinstance(error, GetTimeoutError)
            found = f"no answer within {ANSWER_SECONDS:g} s" if late else f"no worker stays alive ({error!r})"
            raise UserError(
                f"node {node.name}: {found}; see `ray status`, or take the node out of the cluster"
            ) from None
    return answers


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError:  # a fault of ours: its traceback is wanted
        raise
    except RayError as error:
        raise UserError(
            f"a part was begun {RETRIES + 1} times and its worker died each time ({type(error).__name__}), perhaps for "
            "want of memory; try fewer at a time (--workers)"
        ) from None


def _cancel(references: list[Any]) -> None:
    """End tasks, and wait until nothing of them can write any more."""
    for reference in references:
        ray.cancel(reference, force=True)
    if references:
        ray.wait(references, num_returns=len(references), timeout=CANCEL_SECONDS)


def _answering(address: str) -> str:
    """HOST:PORT of a cluster that answers. Ray itself would wait two minutes for one that is gone."""
    if address.startswith("ray://"):
        raise UserError(f"--ray-address {address}: is for clients outside; run the build on a node, with HOST:PORT")
    try:
        found = canonicalize_bootstrap_address_or_die(address)
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        where = "no Ray cluster was found" if address == "auto" else f"no Ray cluster answers at {address}"
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(f"--engine ray: {where}{reason}; {_START}") from None
    return found


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--engine ray: the cluster at {address} cannot be joined: {reason}; its versions of "
            "Ray and Python have to be those here, and its token (RAY_AUTH_TOKEN) known, if it has one"
        ) from None
