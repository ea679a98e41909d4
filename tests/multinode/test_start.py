"""A start over hosts: ranks meet, whatever hosts call themselves, or every one of them leaves in time with a line."""

import subprocess
import sys
import time
from collections.abc import Mapping

import pytest

from tests.multinode.lab import Host
from tests.multinode.ranks import DONE, FAILED, MISTAKE, STOPPED, Crew, next_port
from tests.multinode.runs import LATENESS, SLACK, START_SECONDS, Project, assert_one_line_each

SHORT = "limits.max_steps=3"
LISTEN = """
import socket, sys, time
with socket.create_server(("", int(sys.argv[1]))):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("there", [0, 1])
def test_a_rank_whose_peer_never_comes_leaves_in_time_and_names_it(
    there: int, two: tuple[Host, Host], crew: Crew, project: Project
):
    seconds = 4
    name = f"peer_of_{there}"
    crew.wait_until_warm(two)
    began = time.monotonic()
    start = crew.start(two, project.recipe, f"run.name={name}", f"engine.start_timeout_seconds={seconds}", only=[there])
    assert start.codes() == [FAILED], start.said
    assert seconds - 1 <= start.ranks[0].end_time() - began <= seconds + LATENESS + SLACK
    assert_one_line_each(start)
    assert f"rank {there} on {two[there].name}" in start.said
    status = project.run(name).status
    assert (status["state"], status["exit_code"]) == ("failed", FAILED)
    assert f"rank {there} on {two[there].name}" in status["message"]


@pytest.mark.parametrize("there", [0, 1])
def test_a_rank_that_waits_for_its_peers_hears_a_stop(there: int, two: tuple[Host, Host], crew: Crew, project: Project):
    name = f"stopped_{there}"
    start = crew.start(two, project.recipe, f"run.name={name}", "engine.start_timeout_seconds=90", only=[there])
    time.sleep(3)  # by now it waits
    began = time.monotonic()
    start.ranks[0].signal("SIGTERM")
    assert start.codes() == [STOPPED], start.said
    assert start.ranks[0].end_time() - began < 2 + SLACK, "long before the 90 s in which it would give up"
    status = project.run(name).status
    assert (status["state"], status["exit_code"]) == ("stopped", STOPPED)
    assert "SIGTERM" in status["message"]


NAMES = {
    "debian": ({"node1": "127.0.1.1"}, {"node2": "127.0.1.1"}),
    "debian_on_rank_0": ({"node1": "127.0.1.1"}, {}),
    "own_name_unknown": ({}, {"node2": None}),
    "own_names_unknown": ({"node1": None}, {"node2": None}),
}
"""What the two hosts believe of their own names."""


@pytest.mark.parametrize("names", NAMES)
def test_hosts_train_whatever_they_believe_of_their_own_names(
    names: str, two: tuple[Host, Host], crew: Crew, project: Project
):
    first, second = two
    believed: tuple[Mapping[str, str | None], ...] = NAMES[names]
    address = first.address if first.name in believed[0] and believed[0][first.name] is None else first.name
    with first.calling(believed[0]), second.calling(believed[1]):
        start = crew.start(two, project.recipe, f"run.name={names}", SHORT, address=address)
        assert start.codes() == [DONE, DONE], start.said
    assert list(project.run(names).losses) == [1, 2, 3]


def test_a_master_that_nobody_knows_is_a_line_of_each_host(two: tuple[Host, Host], crew: Crew, project: Project):
    names = ("run.name=nowhere", "engine.start_timeout_seconds=3")
    start = crew.start(two, project.recipe, *names, address="nowhere")
    assert start.codes() == [MISTAKE, MISTAKE], start.said
    assert_one_line_each(start)
    for number, host in enumerate(two):
        assert f"rank {number} on {host.name}: MASTER_ADDR=nowhere" in start.said
    assert project.run("nowhere").status["exit_code"] == MISTAKE


def test_a_port_that_is_taken_is_a_line(two: tuple[Host, Host], crew: Crew, project: Project):
    port = next_port()
    piped = {"stdout": subprocess.PIPE, "text": True}
    listener = two[0].popen([sys.executable, "-S", "-c", LISTEN, str(port)], **piped)
    try:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "up\n"
        start = crew.start(two, project.recipe, "run.name=taken", "engine.start_timeout_seconds=5", port=port)
        codes = start.codes()
    finally:
        two[0].end(listener)
    assert codes[0] == MISTAKE, start.said
    assert codes[1] in (MISTAKE, FAILED), start.said
    assert_one_line_each(start)
    assert f"MASTER_PORT={port}" in start.ranks[0].said


def _task(number: int, **more: str) -> dict[str, str]:
    """What srun gives to a task of a step with one task on each of two nodes."""
    return {
        "SLURM_JOB_ID": "4321",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_STEP_NODELIST": "node[1-2]",
        **more,
    }


def test_tasks_of_srun_find_each_other_without_rank(two: tuple[Host, Host], crew: Crew, project: Project):
    crew.wait_until_warm(two)
    words = (project.recipe, "run.name=tasks", SHORT)
    ranks = [crew.rank(host, *words, environment=_task(number)) for number, host in enumerate(two)]
    assert [rank.code() for rank in ranks] == [DONE, DONE], ranks[0].said + ranks[1].said
    environment = (project.run("tasks").path / "environment.json").read_text()
    assert all(host.name in environment for host in two)


def test_a_process_of_a_larger_job_never_trains_alone(two: tuple[Host, Host], crew: Crew, project: Project):
    job = {"SLURM_JOB_ID": "4321", "SLURM_NTASKS": "2"}
    rank = crew.rank(two[0], project.recipe, "run.name=alone_in_a_job", environment=job)
    assert rank.code() == MISTAKE, rank.said
    assert len(rank.said.splitlines()) == 1, rank.said
    assert "SLURM_NTASKS=2" in rank.said
    assert not project.run("alone_in_a_job").directory.metrics.exists()


def test_no_start_waits_longer_than_its_own_timeout(two: tuple[Host, Host], crew: Crew, project: Project):
    """A link that goes down while ranks meet: rank 1 is there, and rank 0 never hears of it."""
    two[1].unplug()
    try:
        began = time.monotonic()
        start = crew.start(two, project.recipe, "run.name=cut_start", "engine.start_timeout_seconds=5")
        assert start.codes() == [FAILED, FAILED], start.said
        assert max(rank.end_time() for rank in start.ranks) - began <= START_SECONDS + LATENESS + SLACK
    finally:
        two[1].plug()
    assert_one_line_each(start)
    again = crew.start(two, project.recipe, "run.name=cut_start", SHORT)
    assert again.codes() == [DONE, DONE], again.said
