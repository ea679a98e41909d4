"""Hosts are compared with each other, and the one that differs is named with what it differs in."""

import copy
from pathlib import Path

import pytest

from launch.plan.launch_plan import Node
from shards.errors import ConfigError
from tests.ssh import install_ssh
from trainer.cli import main
from trainer.doctor.nodes import Seen, differences, examine_hosts, shortcomings, table

ANSWER = {
    "host": "a",
    "python": "3.11.2",
    "versions": {"torch": "2.14.0", "deepspeed": "0.19.8"},
    "code": "c" * 64,
    "gpus": ["H100", "H100"],
    "disk": {"place": "/runs", "free": 1 << 40, "writable": True},
    "splits": {"train": {"index": "1" * 64, "shards": 4, "bytes": 9, "wrong": 0, "such_as": []}},
    "clock": 1000.5,
}
NODES = tuple(Node(name, 2) for name in ("n1", "n2", "n3"))


def hosts(**changes: object) -> dict[str, Seen]:
    """Three hosts, of which the second answers with `changes`."""
    answers = {node.name: copy.deepcopy(ANSWER) for node in NODES}
    answers["n2"].update(changes)
    return {name: Seen(answer, before=1000.0, after=1001.0) for name, answer in answers.items()}


def test_hosts_that_are_alike_have_no_fault():
    assert list(differences(hosts())) == list(shortcomings(NODES, hosts())) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"python": "3.12.1"}, "host n2: python: 3.12.1, and 2 other host(s) have 3.11.2"),
        ({"code": "d" * 64}, "host n2: code: dddddddddd, and 2 other host(s) have cccccccccc"),
        ({"versions": {"torch": None, "deepspeed": "0.19.8"}}, "host n2: torch: not installed, and 2 other host(s)"),
        ({"gpus": ["H100", "L4"]}, "host n2: gpus: 1 x H100, 1 x L4, and 2 other host(s) have 2 x H100"),
        (
            {"splits": {"train": {**ANSWER["splits"]["train"], "index": "2" * 64}}},
            "host n2: data.train: 2222222222, and 2 other host(s) have 1111111111",
        ),
    ],
)
def test_the_one_that_differs_is_named(changes: dict, line: str):
    (found,) = differences(hosts(**changes))
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"gpus": ["H100"]}, "host n2: gpus: 1 for slots=2; lower the slots of all hosts"),
        (
            {"disk": {**ANSWER["disk"], "writable": False}},
            "host n2: /runs: cannot be written to; set run.directory to a place that can",
        ),
        ({"disk": {**ANSWER["disk"], "free": 1 << 20}}, "host n2: /runs: 0.00 GiB free; a run's checkpoints need more"),
        (
            {"splits": {"train": {**ANSWER["splits"]["train"], "wrong": 2, "such_as": ["0.tar", "1.tar"]}}},
            "host n2: data.train: 2 of 4 shards are missing or cut off, such as 0.tar, 1.tar; copy them again",
        ),
        (
            {"splits": {"train": {"fault": "/d/index.json: No such file or directory"}}},
            "host n2: data.train: /d/index.json: No such file or directory; every host reads the same shards at the "
            "same path",
        ),
        ({"clock": 1037.0}, "host n2: clock: 36 s ahead of this machine's; set it by NTP"),
        ({"clock": 990.0}, "host n2: clock: 10 s behind this machine's; set it by NTP"),
    ],
)
def test_what_a_host_lacks_is_one_line(changes: dict, line: str):
    assert list(shortcomings(NODES, hosts(**changes))) == [line]


def test_a_clock_is_right_within_what_the_question_took():
    assert hosts(clock=1000.9)["n2"].clock_offset == 0.0


def test_the_table_has_a_line_for_each_host_reached_or_not():
    seen = hosts()
    del seen["n3"]
    titles, *rows = table(NODES, seen)
    assert titles.split() == ["host", "python", "packages", "code", "gpus", "free", "shards", "clock"]
    assert [row.split()[0] for row in rows] == ["n1", "n2", "n3"]
    assert rows[2].split() == ["n3", "not", "reached"]
    assert "train 4 of 4 (1111111111)" in rows[0]


def test_hosts_are_asked_through_ssh_and_one_that_is_down_is_a_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = install_ssh(tmp_path / "bin", monkeypatch, down=("n3",))
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\nn3 slots=1\n")
    lines, faults = examine_hosts(tmp_path / "hosts", None)
    assert [line.split()[0] for line in lines] == ["host", "n1", "n2", "n3"]
    assert [fault for fault in faults if fault.startswith("host n3: ssh cannot reach it (ssh: connect to host n3")]
    assert not [fault for fault in faults if "n1: code" in fault or "n2: code" in fault]
    assert {words[0] for words in asked.asked} == {"n1", "n2", "n3"}
    assert main(["doctor", "--hostfile", "hosts"]) == 2
    assert "duoflow: host n3: ssh cannot reach it" in capsys.readouterr().err


def test_a_wrong_hostfile_is_one_line(tmp_path: Path):
    (tmp_path / "hosts").write_text("n1 slots=$(id)\n")
    with pytest.raises(ConfigError, match=r"hosts:1: 'n1 slots=\$\(id\)': expected `HOST slots=N`"):
        examine_hosts(tmp_path / "hosts", None)
