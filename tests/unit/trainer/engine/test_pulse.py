"""Ranks that are late, silent or gone are named to all others: pulses over real connections of one process."""

import logging
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from trainer.engine import pulse as module
from trainer.engine.pulse import FollowingPulse, LeadingPulse, Pulse

HOSTS = ("fvn1", "fvn2", "fvn3")


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class Clock:
    """Time that passes when a test says so: a slow machine is no silent rank."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ranks:
    """Three ranks that beat every second, each with what it was told to do."""

    def __init__(self, timeout_seconds: float) -> None:
        self.clock = Clock()
        self.dumped: list[int] = []
        self.left: list[tuple[int, str]] = []
        self.hanging: set[int] = set()
        times = {"beat_seconds": 1.0, "timeout_seconds": timeout_seconds, "clock": self.clock}
        self.leading = LeadingPulse(["?"] * 3, **times, **self._acts(0))
        self.leading.start(HOSTS)
        self.following = [
            FollowingPulse(rank, HOSTS, "127.0.0.1", self.leading.offer, **times, **self._acts(rank)) for rank in (1, 2)
        ]
        self.all: list[Pulse] = [self.leading, *self.following]
        for following in self.following:
            following.start()
        until(lambda: {peer.rank for peer in self.leading._peers.values()} == {1, 2})

    def _acts(self, rank: int) -> dict[str, Callable]:
        return {
            "dump_stacks": lambda: self.dumped.append(rank),
            "on_lost": lambda message: self.left.append((rank, message)),
        }

    def pass_seconds(self, seconds: int) -> None:
        """Let time pass, in which every rank that does not hang is heard every second."""
        for _ in range(seconds):
            self.clock.now += 1.0
            until(self._have_beaten)

    def _have_beaten(self) -> bool:
        peers = {peer.rank: peer for peer in list(self.leading._peers.values())}
        followers = [pulse for pulse in self.following if pulse.rank not in self.hanging]
        heard = [peers[pulse.rank].heard for pulse in followers] + [pulse._leader.heard for pulse in followers]
        return all(time == self.clock.now for time in heard)

    def leave(self) -> set[int]:
        """The ranks that leave, once all that do not hang know that one is lost, and a moment later."""
        there = [pulse for pulse in self.all if pulse.rank not in self.hanging]
        until(lambda: all(pulse._verdict for pulse in there))
        self.clock.now += 1.0
        until(lambda: len(self.left) == len(there))
        return {rank for rank, _ in self.left}

    def hang(self, rank: int) -> None:
        """As a stopped process, or one behind a cut link: its connection stays open."""
        self.hanging.add(rank)
        self.all[rank]._over.set()
        self.all[rank]._thread.join()


@pytest.fixture
def make(monkeypatch) -> Iterator[Callable[..., Ranks]]:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    made: list[Ranks] = []

    def make(*, timeout_seconds: float = 1e6) -> Ranks:
        made.append(Ranks(timeout_seconds))
        return made[-1]

    yield make
    for ranks in made:
        for pulse in reversed(ranks.all):
            pulse.leave()


def test_a_rank_that_is_killed_is_named_by_all_others_which_leave(make):
    ranks = make()
    ranks.hang(1)
    ranks.following[0]._leader.connection.shutdown(socket.SHUT_RDWR)  # as the kernel does for a killed process
    expected = "rank 1 on fvn2 ended without a word: it was killed, or its host is gone"
    assert ranks.leading.blame(60) == expected
    assert ranks.following[1].blame(60) == expected
    assert ranks.left == [], "they have a moment for leaving by themselves"
    assert ranks.leave() == {0, 2}
    assert sorted(ranks.left) == [(0, f"rank 0 on fvn1 leaves: {expected}"), (2, f"rank 2 on fvn3 leaves: {expected}")]
    assert sorted(ranks.dumped) == [0, 2], "each writes its stacks, once"


def test_the_cause_that_a_failing_rank_gives_reaches_the_others(make):
    ranks = make()
    ranks.following[1].leave("rank 2 on fvn3: DataError: train-0001.tar is cut off")
    assert ranks.following[0].blame(60) == "rank 2 on fvn3: DataError: train-0001.tar is cut off"


def test_when_rank_0_fails_the_others_hear_why_or_that_it_is_gone(make):
    ranks = make()
    ranks.leading.leave("rank 0 on fvn1: the disk is full")
    assert [pulse.blame(60) for pulse in ranks.following] == ["rank 0 on fvn1: the disk is full"] * 2
    ranks = make()
    ranks.hang(0)
    for peer in ranks.leading._peers.values():
        peer.connection.shutdown(socket.SHUT_RDWR)
    assert all("rank 0 on fvn1 ended without a word" in pulse.blame(60) for pulse in ranks.following)


def test_who_says_goodbye_is_not_missed(make):
    ranks = make()
    for pulse in reversed(ranks.all):
        pulse.leave()
    assert [pulse.blame(0.5) for pulse in ranks.all] == [None] * 3
    assert ranks.left == ranks.dumped == []


def test_a_late_rank_is_named_with_its_phase_and_asked_for_its_stacks(make, caplog):
    caplog.set_level(logging.WARNING)
    ranks = make()
    for pulse in ranks.all:
        pulse.at("step 12: reading data")
    for pulse in (ranks.leading, ranks.following[1]):
        pulse.at("adding up metrics", waiting=True)
    ranks.pass_seconds(3)
    assert "late" not in caplog.text, "not yet"
    ranks.pass_seconds(3)
    assert "rank 1 on fvn2 is late: step 12: reading data" in caplog.text
    until(lambda: ranks.dumped == [1])
    until(lambda: "rank 1 on fvn2 is late" in (ranks.following[1].blame() or ""))
    ranks.following[0].at("adding up metrics", waiting=True)
    ranks.pass_seconds(2)
    until(lambda: "rank 1 on fvn2 is back after" in caplog.text)
    assert ranks.left == [], "late is not lost"


def test_a_rank_that_is_late_for_longer_than_the_timeout_is_lost(make):
    ranks = make(timeout_seconds=8.0)
    ranks.leading.at("adding up metrics", waiting=True)
    ranks.following[0].at("adding up metrics", waiting=True)
    ranks.pass_seconds(7)
    assert ranks.left == []
    ranks.pass_seconds(3)
    assert ranks.leave() == {0, 1, 2}
    assert all("rank 2 on fvn3 is late: starting" in message for _, message in ranks.left)


def test_a_rank_that_hangs_falls_silent_and_is_named(make):
    ranks = make(timeout_seconds=8.0)
    ranks.hang(1)
    ranks.pass_seconds(5)
    assert "rank 1 on fvn2 has not been heard of for" in ranks.following[1].blame()
    ranks.pass_seconds(5)
    assert ranks.leave() == {0, 2}
    assert "engine.timeout_seconds" in ranks.left[0][1]


def _passes(clock: Clock) -> bool:
    clock.now += 1.0
    return True


def test_when_rank_0_hangs_the_others_name_it(make):
    ranks = make(timeout_seconds=8.0)
    ranks.hang(0)
    until(lambda: _passes(ranks.clock) and all(pulse._verdict for pulse in ranks.following))
    assert ranks.leave() == {1, 2}
    assert all("rank 0 on fvn1 has not been heard of for" in message for _, message in ranks.left)


@pytest.mark.parametrize(
    "text",
    [b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "token": "guessed"}\n', b"[1, 2]\n", b"{}\n{}\n", b"x" * 200_000, b""],
    ids=["http", "guessed", "list", "nothing", "long", "silent"],
)
def test_strangers_are_shown_the_door_and_change_nothing(make, text: bytes):
    ranks = make()
    with socket.create_connection(("127.0.0.1", ranks.leading.offer["port"])) as stranger:
        stranger.settimeout(60)
        try:
            stranger.sendall(text)
            stranger.shutdown(socket.SHUT_WR)
            answer = stranger.recv(1)
        except TimeoutError:
            answer = None  # the stranger was let in
        except OSError:
            answer = b""  # the door was shut before all of it was said
        assert answer == b""
    ranks.pass_seconds(1)
    assert ranks.leading.blame() is None
    assert ranks.left == []
