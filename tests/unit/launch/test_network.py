"""Rank 0's address is one that others reach, also where the own name is loopback; ports are found and refused."""

import socket

import pytest

from launch import network
from launch.network import FIRST_PORT, LAST_PORT, address_towards, addresses, is_free, ports_for, reachable_address


def test_an_address_from_outside_is_taken_before_loopback():
    assert reachable_address(["127.0.1.1", "10.0.0.1"], ["10.0.0.2"]) == "10.0.0.1"


def test_debians_127_0_1_1_becomes_the_address_towards_the_others(monkeypatch):
    monkeypatch.setattr(network, "address_towards", lambda address: {"10.0.0.2": "10.0.0.1"}[address])
    assert reachable_address(["127.0.1.1"], ["127.0.0.1", "10.0.0.2"]) == "10.0.0.1"


def test_alone_loopback_will_do_and_an_unknown_host_has_none():
    assert reachable_address(["127.0.0.1"], []) == "127.0.0.1"
    assert reachable_address([], ["10.0.0.2"]) is None


def test_the_way_to_loopback_is_loopback():
    assert address_towards("127.0.0.1") == "127.0.0.1"


def test_a_name_that_nobody_knows_has_no_addresses():
    assert addresses("localhost")
    assert addresses("no.such.host.invalid") == []


def test_a_port_with_a_listener_is_not_free():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


@pytest.mark.parametrize("name", ["/runs/a", "/runs/b", ""])
def test_ports_are_the_same_every_time_and_below_those_of_outgoing_connections(name: str):
    ports = ports_for(name)
    assert ports == ports_for(name)
    assert len(set(ports)) == len(ports)
    assert all(FIRST_PORT <= port <= LAST_PORT < 32_768 for port in ports)


def test_runs_begin_at_different_ports():
    assert len({ports_for(f"/runs/{number}")[0] for number in range(50)}) > 40
