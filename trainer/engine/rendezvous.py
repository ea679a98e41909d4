"""How the ranks of a run find each other: a roll call with a deadline, before any process group is made.

torch's own rendezvous bounds some of its phases and hangs in others; here every phase has one deadline, a signal is
heard at once, and whoever fails tells the others why.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch.distributed as dist

from shards.errors import ConfigError
from trainer.engine.addresses import address_between, is_served_by_agent, own_address
from trainer.engine.process import Place, host_name
from trainer.engine.waiting import LateError, LostRankError, Stop, StoppedError, first_line, wait_for
from trainer.engine.whereabouts import shortened

Made = TypeVar("Made")

_LOOK_SECONDS = 0.2
_TELL_SECONDS = 0.7
"""How long a rank that gives up stays for the others to hear why: rank 0 takes the store along when it leaves."""


class Met(NamedTuple):
    """All ranks, after the roll call."""

    hosts: tuple[str, ...]
    """Name of each rank's host."""
    address: str | None
    """This host's IPv4 address for the others; None if all ranks are on one host."""
    first_address: str
    """Rank 0's, for this rank."""
    offered: dict[str, Any]
    """What rank 0 has given to all."""


class Rendezvous:
    """The meeting of one start. Call its methods in the main thread, one after the other.

    Args:
        seconds: for all of it together.
        stop: ends the waiting.
    """

    def __init__(self, place: Place, *, seconds: float, stop: Stop | None = None) -> None:
        assert place.address is not None, "a rank of several has an address to meet at"
        self._place, self._seconds, self._stop = place, seconds, stop
        self._deadline = time.monotonic() + seconds
        self._store = self._bounded(self._connect, self._nobody_answers)

    def call_the_roll(self, offered: dict[str, Any]) -> Met:
        """Wait until every rank has come.

        Args:
            offered: plain JSON values that all ranks get, on rank 0.

        Raises:
            ConfigError: the ranks do not belong together.
            LostRankError: ranks are missing at the deadline; says who has come, and from where.
            StoppedError: a signal came first, here or at another rank.
        """
        try:
            roll = self._bounded(lambda: self._enrol(offered), self._ranks_are_missing)
        except dist.DistError as error:
            raise LostRankError(
                f"{self._place}: rank 0 is gone before all ranks had come: {first_line(error)}"
            ) from error
        addresses = [record["address"] for record in roll["ranks"]]
        own = address_between(addresses[self._place.rank], addresses)
        return Met(tuple(record["host"] for record in roll["ranks"]), own, roll["address"], roll["offered"])

    def make(self, what: str, act: Callable[[dist.Store], Made]) -> Made:
        """What `act` makes of the store on all ranks together, such as a process group.

        Raises:
            LostRankError, StoppedError: as above.
        """
        with self._listening() as heard:

            def look() -> None:
                if heard:
                    self._raise(heard[0])

            def late() -> NoReturn:
                raise LostRankError(f"{self._place}: {what} was not made within {self._seconds:g} s of the start")

            try:
                return self._bounded(lambda: act(dist.PrefixStore(what, self._store)), late, look)
            except RuntimeError as error:
                if isinstance(error, LostRankError):
                    raise
                message = f"{self._place}: {what} cannot be made between the hosts: {first_line(error)}"
                self._tell("failed", message)
                raise LostRankError(message) from error

    def refuse(self, error: ConfigError) -> None:
        """Let the others know that this rank cannot take part."""
        self._tell("refused", str(error))

    def _bounded(
        self, act: Callable[[], Made], late: Callable[[], NoReturn], look: Callable[[], None] = lambda: None
    ) -> Made:
        try:
            return wait_for(act, "the ranks", deadline=self._deadline, stop=self._stop, interrupt=look)
        except LateError:
            try:
                late()
            except LostRankError as error:
                self._tell("failed", str(error))
                raise
        except StoppedError as stopped:
            self._tell("stopped", f"{stopped}")
            raise
        except ConfigError as error:
            self.refuse(error)
            raise

    def _connect(self) -> dist.Store:
        if self._place.rank != 0:
            self._await_listener()
        return self._open(is_master=self._place.rank == 0 and not is_served_by_agent())

    def _await_listener(self) -> None:
        """Wait until somebody listens where rank 0 should; torch's own tries end in lines of C++."""
        while time.monotonic() < self._deadline:
            try:
                socket.create_connection((self._place.address, self._place.port), timeout=_LOOK_SECONDS * 10).close()
            except OSError:
                time.sleep(_LOOK_SECONDS)
            else:
                return
        self._nobody_answers()

    def _open(self, *, is_master: bool) -> dist.Store:
        timeout = timedelta(seconds=max(1.0, self._deadline - time.monotonic()))
        where = f"MASTER_ADDR={self._place.address} MASTER_PORT={self._place.port}"
        try:
            store = dist.TCPStore(
                self._place.address,
                self._place.port,
                None,
                is_master,
                timeout,
                wait_for_workers=False,
                multi_tenant=is_master,
            )
        except RuntimeError as error:
            if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
                raise ConfigError(
                    f"{self._place}: {where}: another program listens there; choose a port that is free on this host"
                ) from None
            raise LostRankError(f"{self._place}: {where}: {first_line(error)}") from error
        # torchrun's store outlives a restart of its ranks, and keeps what the last ones have left there.
        return dist.PrefixStore(f"duoflow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _enrol(self, offered: dict[str, Any]) -> dict[str, Any]:
        """Write this rank into the roll and wait for the others; runs beside the main thread."""
        store, place = self._store, self._place
        if place.rank == 0:
            store.set("size", str(place.world_size))
        record = {"host": host_name(), "pid": os.getpid(), "address": own_address(place.address)}
        if store.add(f"claim/{place.rank}", 1) > 1:
            other = json.loads(store.get(f"rank/{place.rank}"))
            raise ConfigError(
                f"{place}: rank {place.rank} is there twice, as process {os.getpid()} here and {other['pid']} on "
                f"{other['host']}; every process needs a RANK of its own"
            )
        store.set(f"rank/{place.rank}", json.dumps(record))
        names = [f"rank/{rank}" for rank in range(place.world_size)]
        while not store.check(["roll"]):
            self._heed(store)
            if place.rank == 0 and store.check(names):
                ranks = [json.loads(store.get(name)) for name in names]
                first = address_between(ranks[0]["address"], [record["address"] for record in ranks])
                roll = {"ranks": ranks, "address": first or "127.0.0.1", "offered": offered}
                store.set("roll", json.dumps(roll))
            elif place.rank != 0 and store.check(["size"]) and (size := int(store.get("size"))) != place.world_size:
                raise ConfigError(f"{place}: started as one of {place.world_size} ranks, and rank 0 as one of {size}")
            else:
                time.sleep(_LOOK_SECONDS)
        return json.loads(store.get("roll"))

    def _heed(self, store: dist.Store) -> None:
        if store.check(["verdict"]):
            self._raise(store.get("verdict").decode())

    def _raise(self, verdict: str) -> NoReturn:
        kind, _, message = verdict.partition("\n")
        if kind == "stopped":
            raise StoppedError(f"{message} on another rank")
        if kind == "refused":
            raise ConfigError(message)
        raise LostRankError(f"{self._place}: the start failed: {message}")

    def _tell(self, kind: str, message: str) -> None:
        """Leave the first word on why this start ends, for the other ranks; without a store there is nobody to hear."""
        if not hasattr(self, "_store"):
            return

        def tell() -> None:
            told = f"{kind}\n{message}"
            if self._store.compare_set("verdict", "", told).decode() == told and self._place.world_size > 1:
                time.sleep(_TELL_SECONDS)

        with contextlib.suppress(LateError, RuntimeError):  # the others have their own deadline
            wait_for(tell, "the others", deadline=time.monotonic() + 2 * _TELL_SECONDS)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[list[str]]:
        """A list that gets the verdict of another rank. The connection is one of its own: a store serves one call."""
        heard: list[str] = []
        over = threading.Event()

        def listen() -> None:
            with contextlib.suppress(RuntimeError, LostRankError):  # the store is gone: the group will say so
                store = self._open(is_master=False)
                while not over.wait(_LOOK_SECONDS):
                    if store.check(["verdict"]):
                        heard.append(store.get("verdict").decode())
                        return

        threading.Thread(target=listen, daemon=True, name="listening for a verdict").start()
        try:
            yield heard
        finally:
            over.set()

    def _nobody_answers(self) -> NoReturn:
        raise LostRankError(
            f"{self._place}: rank 0 did not answer at {self._place.address} port {self._place.port} within "
            f"{self._seconds:g} s (engine.start_timeout_seconds): it has not come, cannot be reached from here, or "
            "something else listens there"
        )

    def _ranks_are_missing(self) -> NoReturn:
        """Say who has come, as far as the store still answers."""
        size = self._place.world_size

        def look() -> dict[int, str]:
            there = [rank for rank in range(size) if self._store.check([f"rank/{rank}"])]
            return {rank: json.loads(self._store.get(f"rank/{rank}"))["host"] for rank in there}

        try:
            came = wait_for(look, "the roll", deadline=time.monotonic() + _TELL_SECONDS)
        except (LateError, RuntimeError):
            self._nobody_answers()
        missing = [str(rank) for rank in range(size) if rank not in came]
        raise LostRankError(
            f"{self._place}: {len(missing)} of {size} ranks did not come within {self._seconds:g} s "
            f"(engine.start_timeout_seconds): {shortened(missing)} missing; here are "
            f"{shortened([f'rank {rank} on {host}' for rank, host in came.items()])}"
        )
