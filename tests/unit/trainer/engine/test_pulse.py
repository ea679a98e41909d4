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


class Ranks:
    """Three ranks, each with what it was told to do."""

    def __init__(self, beat_seconds: float, timeout_seconds: float) -> None:
        self.dumped: list[int] = []
        self.left: list[tuple[int, str]] = []
        times = {"beat_seconds": beat_seconds, "timeout_seconds": timeout_seconds}
        self.leading = LeadingPulse(["?"] * 3, **times, **self._acts(0))
        self.leading.start(HOSTS)
        self.following = [
            FollowingPulse(rank, HOSTS, "127.0.0.1", self.leading.offer, **times, **self._acts(rank)) for rank in (1, 2)
        ]
        self.all: list[Pulse] = [self.leading, *self.following]
        for following in self.following:
            following.start()

    def _acts(self, rank: int) -> dict[str, Callable]:
        return {
            "dump_stacks": lambda: self.dumped.append(rank),
            "on_lost": lambda message: self.left.append((rank, message)),
        }


@pytest.fixture
def make(monkeypatch) -> Iterator[Callable[..., Ranks]]:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    made: list[Ranks] = []

    def make(*, beat_seconds: float = 0.2, timeout_seconds: float = 1e6) -> Ranks:
        made.append(Ranks(beat_seconds, timeout_seconds))
        return made[-1]

    yield make
    for ranks in made:
        for pulse in reversed(ranks.all):
            pulse.leave()


def kill(pulse: FollowingPulse) -> None:
    """What is left of a killed process: a connection that the kernel closes."""
    pulse._over.set()
    pulse._thread.join()
    pulse._leader.connection.shutdown(socket.SHUT_RDWR)


def everybody_is_known(ranks: Ranks) -> bool:
    """Whether rank 0 has read who it is connected with."""
    return sorted(peer.rank or 0 for peer in list(ranks.leading._peers.values())) == [1, 2]


def test_a_rank_that_is_killed_is_named_by_all_others_which_leave(make):
    ranks = make()
    until(lambda: everybody_is_known(ranks))
    kill(ranks.following[0])
    expected = "rank 1 on fvn2 ended without a word: it was killed, or its host is gone"
    assert ranks.leading.blame(60) == expected
    assert ranks.following[1].blame(60) == expected
    until(lambda: len(ranks.left) == 2)
    assert sorted(ranks.left) == [(0, f"rank 0 on fvn1 leaves: {expected}"), (2, f"rank 2 on fvn3 leaves: {expected}")]
    assert sorted(ranks.dumped) == [0, 2], "each writes its stacks, once"


def test_the_cause_that_a_failing_rank_gives_reaches_the_others(make):
    ranks = make()
    ranks.following[1].leave("rank 2 on fvn3: DataError: train-0001.tar is cut off")
    assert ranks.following[0].blame(60) == "rank 2 on fvn3: DataError: train-0001.tar is cut off"


def test_when_rank_0_fails_the_others_hear_why_or_that_it_is_gone(make):
    ranks = make()
    until(lambda: everybody_is_known(ranks))
    ranks.leading.leave("rank 0 on fvn1: the disk is full")
    assert [pulse.blame(60) for pulse in ranks.following] == ["rank 0 on fvn1: the disk is full"] * 2
    ranks = make()
    until(lambda: everybody_is_known(ranks))
    ranks.leading._over.set()
    ranks.leading._thread.join()
    for peer in ranks.leading._peers.values():
        peer.connection.shutdown(socket.SHUT_RDWR)
    assert all("rank 0 on fvn1 ended without a word" in pulse.blame(60) for pulse in ranks.following)


def test_who_says_goodbye_is_not_missed(make):
    ranks = make()
    until(lambda: len(ranks.leading._peers) == 2)
    for pulse in reversed(ranks.all):
        pulse.leave()
    assert [pulse.blame(0.5) for pulse in ranks.all] == [None] * 3
    assert ranks.left == ranks.dumped == []


def test_a_late_rank_is_named_with_its_phase_and_asked_for_its_stacks(make, caplog):
    caplog.set_level(logging.WARNING)
    ranks = make(beat_seconds=0.1)
    for pulse in ranks.all:
        pulse.at("step 12: reading data")
    for pulse in (ranks.leading, ranks.following[1]):
        pulse.at("adding up metrics", waiting=True)
    until(lambda: "rank 1 on fvn2 is late: step 12: reading data" in caplog.text)
    until(lambda: ranks.dumped == [1])
    until(lambda: ranks.following[1].blame() is not None)
    assert "rank 1 on fvn2 is late" in ranks.following[1].blame()
    ranks.following[0].at("adding up metrics", waiting=True)
    until(lambda: "rank 1 on fvn2 is back after" in caplog.text)
    assert ranks.left == [], "late is not lost"


def test_a_rank_that_is_late_for_longer_than_the_timeout_is_lost(make):
    ranks = make(beat_seconds=0.1, timeout_seconds=1.0)
    ranks.leading.at("adding up metrics", waiting=True)
    ranks.following[0].at("adding up metrics", waiting=True)
    until(lambda: len(ranks.left) == 3)
    assert all("rank 2 on fvn3 is late: starting" in message for _, message in ranks.left)


def test_a_rank_that_hangs_falls_silent_and_is_named(make):
    ranks = make(beat_seconds=0.1, timeout_seconds=2.0)
    until(lambda: everybody_is_known(ranks))
    stopped = ranks.following[0]
    stopped._over.set()  # its connection stays open, as that of a stopped process or behind a cut link
    until(lambda: "rank 1 on fvn2 has not been heard of for" in (ranks.following[1].blame() or ""))
    until(lambda: {rank for rank, _ in ranks.left} == {0, 2})
    assert "engine.timeout_seconds" in ranks.left[0][1]


def test_when_rank_0_hangs_the_others_name_it(make):
    ranks = make(beat_seconds=0.1, timeout_seconds=1.0)
    ranks.leading._over.set()
    until(lambda: {rank for rank, _ in ranks.left} == {1, 2})
    assert all("rank 0 on fvn1 has not been heard of for" in message for _, message in ranks.left)


def is_shown_the_door(stranger: socket.socket, text: bytes) -> bool:
    """Whether the connection ends, wherever that is noticed."""
    stranger.settimeout(60)
    try:
        stranger.sendall(text)
        stranger.shutdown(socket.SHUT_WR)
        return stranger.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_strangers_are_shown_the_door_and_change_nothing(make):
    ranks = make()
    port = ranks.leading.offer["port"]
    for text in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"rank": 1, "token": "guessed"}\n',
        b"[1, 2]\n",
        b"{}\n{}\n",
        b"x" * 200_000,
        b"",
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            assert is_shown_the_door(stranger, text)
    assert ranks.leading.blame(0.5) is None
    assert ranks.left == []
