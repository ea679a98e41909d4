"""Faults are started again and nothing else is; waits grow without progress; hosts may be fewer, if the lanes allow."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.hosts.cluster import Cluster
from launch.hosts.ssh import Hosts
from launch.plan.launch_plan import Node
from launch.processes.ranks import ask_to_stop
from shards.errors import UserError
from tests.distributed.launch import ROOT
from tests.ssh import install_ssh
from trainer.commands import restarts
from trainer.commands.restarts import (
    Ended,
    keep_training,
    nodes_for_restart,
    nodes_that_answer,
    seconds_until_restart,
)
from trainer.config import RunConfig, load_config
from trainer.run_directory import RunDirectory, Status

FAULT = Ended(1, gained=False)
FAULT_LATER = Ended(1, gained=True)


class TestDecision:
    @pytest.mark.parametrize("code", [0, 2, 75, 130])
    def test_only_a_fault_is_started_again(self, code: int):
        assert seconds_until_restart([Ended(code, gained=True)], 5) is None

    def test_nor_is_what_somebody_ended(self):
        assert seconds_until_restart([Ended(1, gained=True, final=True)], 5) is None

    def test_no_more_often_than_asked(self):
        assert seconds_until_restart([FAULT], 0) is None
        assert seconds_until_restart([FAULT_LATER] * 3, 3) is not None
        assert seconds_until_restart([FAULT_LATER] * 4, 3) is None

    def test_waits_double_while_nothing_is_gained_up_to_a_bound(self):
        waits = [seconds_until_restart([FAULT] * count, 100) for count in range(1, 12)]
        assert waits == [2, 4, 8, 16, 32, 64, 120, 120, 120, 120, 120]

    def test_progress_makes_the_next_wait_short_again(self):
        assert seconds_until_restart([FAULT, FAULT, FAULT, FAULT_LATER], 100) == 2
        assert seconds_until_restart([FAULT, FAULT_LATER, FAULT, FAULT], 100) == 4


class TestNodes:
    NODES = tuple(Node(f"n{number}", 2) for number in range(5))

    @staticmethod
    def divide_8_lanes(some: tuple[Node, ...]) -> bool:
        return 8 % sum(node.slots for node in some) == 0

    @pytest.mark.parametrize(
        ("down", "least", "chosen"),
        [
            ((), 1, ["n0", "n1", "n2", "n3"]),
            (("n1",), 1, ["n0", "n2", "n3", "n4"]),
            (("n0", "n3"), 1, ["n1", "n2"]),
            (("n0", "n3"), 3, None),
            (("n0", "n1", "n2", "n3"), 1, ["n4"]),
            (("n0", "n1", "n2", "n3"), 0, ["n4"]),
            (("n0", "n1", "n2", "n3", "n4"), 0, None),
        ],
    )
    def test_the_most_that_answer_and_that_the_lanes_divide_between(self, down, least: int, chosen):
        answering = [node.name not in down for node in self.NODES]
        found = nodes_for_restart(self.NODES, answering, least, self.divide_8_lanes)
        assert (found and [node.name for node in found]) == chosen


class TestHosts:
    """Three hosts of two slots for a run of 4 lanes, of which the last one is down."""

    NODES = tuple(Node(f"n{number}", 2) for number in range(3))

    @pytest.fixture
    def config(self, tmp_path: Path) -> RunConfig:
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text("batch: {visits: 4, micro_visits: 1, lanes: 4}\nmodel: {freeze: []}\n")
        return load_config(recipe)

    def cluster(self, nodes: Sequence[Node], directory: Path) -> Cluster:
        names = tuple(node.name for node in nodes)
        found = {"PYTHONPATH": str(ROOT)}
        hosts = Hosts(names=names, options=(), directory=str(directory), python=sys.executable, environment=found)
        return Cluster(hosts, str(directory / "run"), "MARK")

    def test_those_that_answer_go_on(self, config: RunConfig, tmp_path: Path, monkeypatch, capsys):
        install_ssh(tmp_path / "bin", monkeypatch, down=("n2",))
        found = nodes_that_answer(self.NODES, lambda some: self.cluster(some, tmp_path), 1, config)
        assert [node.name for node in found] == ["n0", "n1"]
        assert "going on with 2 of 3 hosts, without n2" in capsys.readouterr().err

    def test_too_few_are_a_refusal_that_names_the_host(self, config: RunConfig, tmp_path: Path, monkeypatch):
        install_ssh(tmp_path / "bin", monkeypatch, down=("n2",))
        with pytest.raises(UserError, match=r"2 of 3 hosts answer, and --min-nodes is 3: host n2: ssh cannot reach it"):
            nodes_that_answer(self.NODES, lambda some: self.cluster(some, tmp_path), 3, config)


class Launches:
    """Starts that end as they are told to."""

    def __init__(self, run: RunDirectory, *ends: Status | UserError) -> None:
        self.run, self.ends, self.seen = run, list(ends), []

    def __call__(self) -> int:
        status = self.run.read_status()
        self.seen.append(None if status is None else (status.state, status.message))
        end = self.ends.pop(0)
        if isinstance(end, UserError):
            raise end
        self.run.write_status(end)
        return end.exit_code if end.exit_code is not None else 1


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunDirectory:
    monkeypatch.setattr(restarts, "FIRST_WAIT_SECONDS", 0.01)
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


LOST = Status(state="failed", exit_code=1, message="rank 1 was lost", global_step=5)
DONE = Status(state="done", exit_code=0, global_step=10)


class TestLoop:
    def test_a_run_goes_on_after_faults_and_says_why(self, run: RunDirectory, capsys):
        launches = Launches(run, LOST, LOST, DONE)
        assert keep_training(run, launches, 2) == 0
        assert launches.seen[1] == (
            "running",
            "starting again in 0.01 s (restart 1 of 2), after: rank 1 was lost",
        )
        lines = [json.loads(line) for line in run.restarts.read_text().splitlines()]
        assert [(line["step"], line["message"]) for line in lines] == [(5, "rank 1 was lost")] * 2
        assert "starting again in 0.01 s (restart 1 of 2)" in capsys.readouterr().err

    def test_it_gives_up_with_the_code_of_the_last_start(self, run: RunDirectory):
        launches = Launches(run, LOST, LOST)
        assert keep_training(run, launches, 1) == 1
        assert run.read_status() == LOST

    def test_without_restarts_nothing_is_noted(self, run: RunDirectory):
        assert keep_training(run, Launches(run, LOST), 0) == 1
        assert not run.restarts.exists()

    def test_a_first_start_that_is_refused_is_the_users(self, run: RunDirectory):
        with pytest.raises(UserError, match="no such host"):
            keep_training(run, Launches(run, UserError("no such host")), 3)

    def test_a_later_one_is_a_fault_that_may_pass(self, run: RunDirectory):
        assert keep_training(run, Launches(run, LOST, UserError("node2 does not answer"), DONE), 3) == 0
        lines = [json.loads(line) for line in run.restarts.read_text().splitlines()]
        assert lines[1]["message"] == "node2 does not answer"

    def test_a_run_that_somebody_stops_meanwhile_stays_stopped(self, run: RunDirectory, monkeypatch):
        launches = Launches(run, LOST)
        monkeypatch.setattr(restarts, "FIRST_WAIT_SECONDS", 600.0)
        monkeypatch.setattr(restarts, "LONGEST_WAIT_SECONDS", 600.0)
        told: list[str] = []

        def say(line: str, *, error: bool) -> None:  # noqa: ARG001 - as it is called
            told.append(line)
            if "starting again" in line:
                ask_to_stop(run.ranks)

        monkeypatch.setattr(restarts, "say", say)
        assert keep_training(run, launches, 3) == 75
        status = run.read_status()
        assert status is not None
        assert (status.state, status.exit_code) == ("stopped", 75)
        assert "a request to stop while it waited to start again" in status.message

    def test_ranks_that_go_on_without_their_launcher_are_not_started_twice(self, run: RunDirectory):
        assert keep_training(run, Launches(run, Status(state="running", global_step=5)), 3) == 1

    def test_a_run_that_was_killed_on_purpose_is_not_started_again(self, run: RunDirectory):
        launches = Launches(run, LOST)

        def killed() -> int:
            ask_to_stop(run.ranks)
            return launches()

        assert keep_training(run, killed, 3) == 1
