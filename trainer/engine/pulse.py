"""Who is late and who is gone: every rank says where it is, from a thread, to rank 0, which tells the others.

A connection to rank 0 beside the process groups, since those know only that somebody did not come. It needs no torch,
and works while the main thread waits in C++. A process that ends closes its connection, so that it is missed at once;
one that hangs, or whose link is down, falls silent.
"""

import contextlib
import hmac
import json
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.engine.whereabouts import Where, late_ranks, named, shortened

logger = logging.getLogger(__name__)

SILENT_BEATS = 3
"""A rank that says nothing for so many beats is silent."""
GRACE_SECONDS = 5.0
"""How long a rank that hears of a lost one has for leaving by itself: its collectives mostly notice it too."""
_TICK_SECONDS = 0.25
_LONGEST_LINE = 1 << 16
"""Bytes of a message; whoever sends more is none of ours."""


@dataclass
class _Peer:
    """A rank at the other end of a connection."""

    connection: socket.socket
    heard: float
    rank: int | None = None
    where: Where = field(default_factory=Where)
    """As it said last, in this process's time."""
    unread: bytes = b""
    said_goodbye: bool = False


class Pulse:
    """This rank's place in the run, what it knows about the others, and the thread that keeps both up to date.

    Args:
        hosts: name of each rank's host.
        beat_seconds: between two signs of life.
        timeout_seconds: after it a rank that is late or silent counts as lost.
        dump_stacks: writes the stacks of all threads where this rank's log is.
        on_lost: called with a message, from the thread, when a rank is lost and this process is still here after
            GRACE_SECONDS. It should end the process.
    """

    def __init__(
        self,
        rank: int,
        hosts: Sequence[str],
        *,
        beat_seconds: float,
        timeout_seconds: float,
        dump_stacks: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank, self.hosts = rank, tuple(hosts)
        self.dump_stacks, self.on_lost = dump_stacks, on_lost
        self._beat, self._timeout, self._clock = beat_seconds, timeout_seconds, clock
        self._where = Where(since=clock())
        self._verdict: str | None = None
        self._known = threading.Event()
        self._over = threading.Event()
        self._lost_at: float | None = None
        self._suspects = ""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def at(self, phase: str, *, waiting: bool = False) -> None:
        """Say what this rank does from now on. Every rank says the same things in the same order: a rank that has said
        less is late.

        Args:
            waiting: for other ranks.
        """
        self._where = Where(phase, self._where.count + 1, self._clock(), waiting)

    def blame(self, wait_seconds: float = 0.0) -> str | None:
        """Who is lost, or silent, or late, as far as it is known; None if nobody is.

        Args:
            wait_seconds: for word of a rank that has just gone.
        """
        if not self._suspects:
            self._known.wait(wait_seconds)
        return self._verdict or self._suspects or None

    def leave(self, reason: str | None = None) -> None:
        """Say goodbye, so that nobody takes this rank for lost, and stop the thread.

        Args:
            reason: why this rank leaves in the middle; it becomes what the others hear. None is the end of the run.
        """
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * _TICK_SECONDS + 1.0)
        with self._lock:
            self._farewell(reason)

    def _start(self, act: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=act, daemon=True, name="pulse")
        self._thread.start()

    def _farewell(self, reason: str | None) -> None:
        raise NotImplementedError

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}"

    def _ended(self, rank: int) -> str:
        return f"{self._name(rank)} ended without a word: it was killed, or its host is gone"

    def _conclude(self, verdict: str) -> None:
        """Take in that a rank is lost; the first word stands."""
        if self._verdict is None:
            self._verdict, self._lost_at = verdict, self._clock()
            logger.error("%s", verdict)
            self.dump_stacks()
            self._known.set()

    def _leave_if_stuck(self) -> None:
        if self._lost_at is not None and self._clock() - self._lost_at > GRACE_SECONDS:
            self._lost_at = None
            self.on_lost(f"rank {self.rank} on {self.hosts[self.rank]} leaves: {self._verdict}")


class LeadingPulse(Pulse):
    """Rank 0's: it listens to all others."""

    def __init__(self, hosts: Sequence[str], **more: Any) -> None:
        super().__init__(0, hosts, **more)
        self._token = secrets.token_hex(16)
        self._listener = socket.create_server(("", 0), backlog=len(hosts))
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, _Peer] = {}
        self._warned: dict[int, float] = {}
        self._next_beat = 0.0

    @property
    def offer(self) -> dict[str, Any]:
        """What the other ranks need to join: plain JSON values."""
        return {"port": self._listener.getsockname()[1], "token": self._token}

    def start(self, hosts: Sequence[str]) -> None:
        """Begin, now that all ranks are known."""
        self.hosts = tuple(hosts)
        self._start(self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(_TICK_SECONDS):
                with self._lock:
                    self._accept() if key.fileobj is self._listener else self._read(self._peers[key.fileobj])
            with self._lock:
                self._look()
            self._leave_if_stuck()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._peers[connection] = _Peer(connection, self._clock())
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, peer: _Peer) -> None:
        messages = _receive(peer)
        if messages is None or not all(self._take(peer, message) for message in messages):
            self._drop(peer)

    def _take(self, peer: _Peer, message: dict[str, Any]) -> bool:
        """Whether the message is from one of this run's ranks."""
        peer.heard = self._clock()
        if peer.rank is None:
            if not hmac.compare_digest(str(message.get("token")).encode(), self._token.encode()):
                return False
            peer.rank = int(message["rank"])
        if "phase" in message:
            age, count = float(message["age"]), int(message["count"])
            peer.where = Where(str(message["phase"]), count, self._clock() - age, bool(message["waiting"]))
        if "leaves" in message:
            peer.said_goodbye = True
            if message["leaves"] is not None:
                self._lose(peer.rank, str(message["leaves"]))
        return True

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        del self._peers[peer.connection]
        if peer.rank is not None and not peer.said_goodbye:
            self._lose(peer.rank, self._ended(peer.rank))

    def _lose(self, rank: int, verdict: str) -> None:
        # Whoever runs into a timeout first is seldom the one that caused it.
        self._announce(f"{self._suspects}; then {verdict}" if self._warned.keys() - {rank} else verdict)

    def _announce(self, verdict: str) -> None:
        if self._verdict is None:
            self._conclude(verdict)
            self._tell_all({"lost": verdict})

    def _look(self) -> None:
        """Judge who is silent or late; beat."""
        now = self._clock()
        peers = {peer.rank: peer for peer in self._peers.values() if peer.rank is not None}
        silent = {rank: age for rank, peer in peers.items() if (age := now - peer.heard) > SILENT_BEATS * self._beat}
        places = {0: self._where, **{rank: peer.where for rank, peer in peers.items() if rank not in silent}}
        late = late_ranks(places, now, after=SILENT_BEATS * self._beat)
        words = [f"{self._name(rank)} has not been heard of for {age:.0f} s" for rank, age in sorted(silent.items())]
        words += [f"{self._name(rank)} is late: {named(places[rank], now)}" for rank in late]
        self._suspects = shortened(words, "; ")
        self._warn(silent.keys() | set(late), late, peers, now)
        waited = max((now - places[rank].since for rank in places.keys() - set(late)), default=0.0) if late else 0.0
        if any(age > self._timeout for age in silent.values()) or waited > self._timeout:
            self._announce(f"{self._suspects}; the others waited for {self._timeout:g} s (engine.timeout_seconds)")
        if now >= self._next_beat:
            self._next_beat = now + self._beat
            self._tell_all({"suspects": self._suspects})

    def _warn(self, suspected: set[int], late: Sequence[int], peers: dict[int, _Peer], now: float) -> None:
        """A line for those that are newly suspected, and one more when they are back."""
        for rank in self._warned.keys() - suspected:
            since = self._warned.pop(rank)
            if rank == 0 or rank in peers:
                logger.warning("%s is back after %.0f s", self._name(rank), now - since)
        if fresh := suspected - self._warned.keys():
            self._warned |= dict.fromkeys(fresh, now)
            logger.warning("waiting for others: %s", self._suspects)
            for rank in fresh & set(late):
                self.dump_stacks() if rank == 0 else _send(peers[rank].connection, {"stacks": True})

    def _tell_all(self, message: dict[str, Any]) -> None:
        for peer in list(self._peers.values()):
            if peer.rank is not None:
                _send(peer.connection, message)

    def _farewell(self, reason: str | None) -> None:
        if reason is None:
            self._tell_all({"leaves": True})
        else:
            self._tell_all({"lost": self._verdict or reason})
        for peer in self._peers.values():
            peer.connection.close()
        self._listener.close()
        self._selector.close()


class FollowingPulse(Pulse):
    """That of every other rank: it speaks to rank 0, and hears of the others from there.

    Raises:
        OSError: rank 0 cannot be reached there.
    """

    def __init__(self, rank: int, hosts: Sequence[str], address: str, offer: dict[str, Any], **more: Any) -> None:
        super().__init__(rank, hosts, **more)
        connection = socket.create_connection((address, int(offer["port"])), timeout=10.0)
        connection.setblocking(False)
        self._leader = _Peer(connection, self._clock(), rank=0)
        self._next_beat = 0.0
        self._left = False
        _send(connection, {"rank": rank, "token": offer["token"], **self._here()})

    def start(self) -> None:
        """Begin."""
        self._start(self._run)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._leader.connection, selectors.EVENT_READ)
            while not self._over.is_set():
                if selector.select(_TICK_SECONDS) and not self._left:
                    self._hear()
                if self._left:
                    self._over.wait(_TICK_SECONDS)  # a closed connection stays readable
                else:
                    self._look()
                self._leave_if_stuck()

    def _hear(self) -> None:
        messages = _receive(self._leader)
        for message in messages or ():
            self._leader.heard = self._clock()
            if "suspects" in message:
                self._suspects = str(message["suspects"])
            if "stacks" in message:
                self.dump_stacks()
            if "lost" in message:
                self._conclude(str(message["lost"]))
            if "leaves" in message:
                self._leader.said_goodbye = True
        if messages is None:
            self._left = True
            if not self._leader.said_goodbye:
                self._conclude(self._ended(0))

    def _look(self) -> None:
        now = self._clock()
        age = now - self._leader.heard
        if age > SILENT_BEATS * self._beat:
            self._suspects = f"{self._name(0)} has not been heard of for {age:.0f} s"
        if age > self._timeout:
            self._conclude(f"{self._suspects}; it was waited for for {self._timeout:g} s (engine.timeout_seconds)")
        if now >= self._next_beat:
            self._next_beat = now + self._beat
            with self._lock:
                _send(self._leader.connection, self._here())

    def _here(self) -> dict[str, Any]:
        where = self._where
        return {
            "phase": where.phase,
            "count": where.count,
            "age": self._clock() - where.since,
            "waiting": where.waiting,
        }

    def _farewell(self, reason: str | None) -> None:
        _send(self._leader.connection, {"leaves": reason})
        self._leader.connection.close()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a line. What a full or broken connection does not take is lost: silence tells as much."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(peer: _Peer) -> list[dict[str, Any]] | None:
    """The messages that have come; None when the other end is closed, or talks nonsense."""
    try:
        data = peer.connection.recv(_LONGEST_LINE)
    except (BlockingIOError, InterruptedError):
        return []
    except OSError:
        return None
    *lines, peer.unread = (peer.unread + data).split(b"\n")
    if not data or len(peer.unread) > _LONGEST_LINE:
        return None
    try:
        messages = [json.loads(line) for line in lines]
    except ValueError:
        return None
    return messages if all(isinstance(message, dict) for message in messages) else None
