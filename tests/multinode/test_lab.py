"""The lab does what the other tests take for granted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.lab import POLL_SECONDS, ROOT, UP_SECONDS, Host, Lab, what_is_missing

Pair = tuple[Lab, Host, Host]

CONNECT = """
import socket, sys, time
began = time.monotonic()
socket.create_connection((sys.argv[1], 22)).close()
print(time.monotonic() - began)
"""
SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for number in range(int(sys.argv[2])):
        sender.sendto(b"%d" % number, (sys.argv[1], 9999))
"""
COUNT = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    receiver.bind(("", 9999))
    print("up", flush=True)
    receiver.settimeout(3.0)
    seen = set()
    try:
        while True:
            seen.add(receiver.recv(64))
    except TimeoutError:
        print(len(seen))
"""
MAKER = """
import pathlib, sys, time
from tests.multinode.lab import Lab
with Lab(pathlib.Path(sys.argv[1])) as lab:
    hosts = [lab.add_host(), lab.add_host()]
    hosts[0].popen(["sleep", "1000"])
    print(*(process.pid for host in hosts for process in host.processes()), *(host.pid for host in hosts), flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    with Lab(tmp_path_factory.mktemp("pair")) as lab:
        yield lab, lab.add_host(), lab.add_host()


def _connect_seconds(host: Host, other: Host) -> float:
    return float(host.run([sys.executable, "-S", "-c", CONNECT, other.name]).stdout)


def test_hosts_know_each_other_and_their_own_processes_alone(pair: Pair):
    _, first, second = pair
    sleeping = second.popen(["sleep", "30"])
    try:
        said = first.run(["ssh", second.name, "hostname && ps -e -o comm="])
        assert said.stdout.split()[0] == second.name
        assert "sleep" in said.stdout
        assert "sleep" not in first.run(["ps", "-e", "-o", "comm="]).stdout
        (process,) = second.matching("sleep 30")
        assert process.own_pid != process.pid
        os.kill(process.pid, signal.SIGKILL)
        assert sleeping.wait(10) != 0
    finally:
        sleeping.kill()


def test_a_pulled_cable_tells_nobody(pair: Pair):
    _, first, second = pair
    knock = ["ssh", "-o", "ConnectTimeout=2", second.name, "true"]
    second.unplug()
    began = time.monotonic()
    assert first.run(knock).returncode == 255
    assert time.monotonic() - began > 1.9, "an answer, if only a refusal, would have come at once"
    second.plug()
    assert first.run(knock).returncode == 0


def test_a_slow_switch_delays_every_frame_both_ways_and_loses_some(pair: Pair):
    lab, first, second = pair
    with lab.slow_switch(delay_seconds=0.15, loss=0.0):
        assert _connect_seconds(first, second) >= 0.3, "a question and its answer"
    sent = 500
    with lab.slow_switch(delay_seconds=0.0, loss=0.2):
        piped = {"stdout": subprocess.PIPE, "text": True}
        counting = second.popen([sys.executable, "-S", "-c", COUNT], **piped)
        assert counting.stdout is not None
        assert counting.stdout.readline() == "up\n"
        first.run([sys.executable, "-S", "-c", SEND, second.address, str(sent)])
        arrived = int(counting.communicate(timeout=60)[0])
    assert 0.6 * sent < arrived < 0.95 * sent
    assert first.run(["ssh", second.name, "true"]).returncode == 0, "and all is as before"


def test_a_rate_bounds_what_a_host_sends(pair: Pair):
    _, first, second = pair
    megabyte = 1_000_000
    pipe = f"head -c {2 * megabyte} /dev/zero | ssh {second.name} 'wc -c'"
    before = first.sent_bytes()
    with first.limited_to("8mbit"):
        began = time.monotonic()
        assert first.run(["bash", "-c", pipe]).stdout.strip() == str(2 * megabyte)
        assert time.monotonic() - began > 1.7
    assert 2 * megabyte < first.sent_bytes() - before < 3 * megabyte


def test_a_name_is_what_a_host_believes(pair: Pair):
    _, first, second = pair

    def resolved(host: Host, name: str) -> str:
        return host.run(["getent", "ahostsv4", name]).stdout.partition(" ")[0]

    with first.calling({first.name: "127.0.1.1", second.name: None}):
        assert resolved(first, first.name) == "127.0.1.1"
        assert resolved(first, second.name) == ""
        assert resolved(second, first.name) == first.address
    assert resolved(first, second.name) == second.address


def test_a_disk_is_shared_unless_a_host_has_its_own(pair: Pair):
    lab, first, second = pair
    place = lab.directory / "place"
    with second.own_disk(place) as seen:
        (place / "first").touch()
        second.command("touch", str(place / "second"))
        assert first.run(["ls", str(place)]).stdout.split() == ["first"]
        assert [path.name for path in seen.iterdir()] == ["second"]
    assert second.run(["ls", str(place)]).stdout.split() == ["first"]


def test_a_host_that_was_off_comes_back_under_its_name(pair: Pair):
    lab, first, second = pair
    third = lab.add_host()
    assert first.run(["ssh", third.name, "hostname"]).stdout.strip() == third.name
    third.power_off()
    assert not third.is_alive
    again = lab.add_host(third.name)
    assert again.address == third.address
    assert second.run(["ssh", again.name, "hostname"]).stdout.strip() == third.name


@pytest.mark.usefixtures("pair")
def test_a_killed_test_run_leaves_no_host_behind(tmp_path: Path):
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    maker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    pids = [int(word) for word in maker.stdout.readline().split()]
    assert len(pids) >= 4
    maker.kill()
    maker.communicate()
    deadline = time.monotonic() + UP_SECONDS
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(POLL_SECONDS)
