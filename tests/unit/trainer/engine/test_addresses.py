"""Whether ranks can meet is known before torch is there: names, a free port, the interface to the others."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from shards.errors import ConfigError
from trainer.engine import addresses
from trainer.engine.addresses import address_between, check_meeting_place, interface_with_address, own_address
from trainer.engine.process import Place
from trainer.engine.waiting import StoppedError


def free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return probe.getsockname()[1]


def test_a_name_without_an_address_is_refused_with_rank_host_and_what_was_asked():
    with pytest.raises(
        ConfigError, match=r"^rank 1 on \S+: MASTER_ADDR=name.invalid has no address here .*asked for 1 s"
    ):
        check_meeting_place(Place(1, 0, 2, "name.invalid", 29500), seconds=1)


def test_a_name_that_appears_while_it_is_asked_for_is_taken(monkeypatch):
    answers = iter([socket.gaierror(-2, "not yet"), socket.gaierror(-2, "not yet"), []])

    def getaddrinfo(*_: object, **__: object) -> list:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "_RETRY_SECONDS", 0.01)
    check_meeting_place(Place(1, 0, 2, "pod-0.service", 29500), seconds=60)


def test_a_port_that_somebody_listens_on_is_refused_by_rank_0_alone():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^rank 0 on \S+: MASTER_PORT={port}: another program listens there"):
            check_meeting_place(Place(0, 0, 2, "127.0.0.1", port), seconds=60)
        check_meeting_place(Place(1, 0, 2, "127.0.0.1", port), seconds=60)
    check_meeting_place(Place(0, 0, 2, "127.0.0.1", port), seconds=60)


def test_the_port_of_torchruns_own_store_is_no_strangers(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with socket.create_server(("", 0)) as agent:
        check_meeting_place(Place(0, 0, 2, "127.0.0.1", agent.getsockname()[1]), seconds=60)


def test_a_signal_ends_the_asking(monkeypatch):
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    with pytest.raises(StoppedError, match="SIGTERM"):
        check_meeting_place(
            Place(1, 0, 2, "slow", 29500), seconds=60, stop=SimpleNamespace(requested=True, reason="SIGTERM")
        )


def test_a_process_alone_meets_nobody():
    check_meeting_place(Place(0, 0, 1), seconds=0)


def test_the_loopback_interface_is_found_by_its_address():
    assert interface_with_address("127.0.0.1") == "lo"
    assert interface_with_address("192.0.2.1") is None, "an address of the documentation range is nobody's"


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("127.0.0.1", ["127.0.0.1", "127.0.0.1"], None),  # one host
        ("10.0.0.1", ["10.0.0.1", "10.0.0.1"], None),
        ("10.0.0.1", ["10.0.0.1", "10.0.0.2"], "10.0.0.1"),
        ("127.0.1.1", ["127.0.1.1", "10.0.0.2"], "towards 10.0.0.2"),  # the host of rank 0 under Debian
        ("10.0.0.2", ["127.0.1.1", "10.0.0.2"], "10.0.0.2"),  # and the other one there
        (None, [None, "10.0.0.2"], "towards 10.0.0.2"),
        (None, [None, None], None),  # IPv6 alone
    ],
)
def test_a_host_uses_the_address_that_the_others_reach(monkeypatch, own, others, expected):
    monkeypatch.setattr(addresses, "address_towards", lambda address: f"towards {address}")
    assert address_between(own, others) == expected


def test_a_host_whose_master_has_no_ipv4_address_has_none_towards_it():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("name.invalid") is None


def test_no_torch_is_imported_for_it():
    check = "import sys; import trainer.training.arrival; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert (done.stdout, done.stderr) == ("False\n", "")
