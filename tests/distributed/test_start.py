"""A start that cannot hang: whatever keeps ranks from meeting ends each of them with one line, a code and a status."""

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.distributed.forked_ranks import Forked
from tests.distributed.launch import free_port
from tests.runs import write_recipe, write_shards
from tests.trouble import place_of as rank

pytestmark = pytest.mark.distributed

STARTERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "OMPI_", "PMI")


class Start:
    """A rank with the environment that a user gives it by hand, as `python -m trainer.train` starts it."""

    def __init__(self, recipe: Path, environment: Mapping[str, str], *overrides: str) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(STARTERS)}
        own = plain | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | dict(environment)
        self.process = Forked("trainer.train", [str(recipe), *overrides], [own])

    def end(self) -> tuple[int, list[str]]:
        """Exit code and lines."""
        ended = self.process.wait(timeout_seconds=600)
        return ended.returncode, ended.stdout.splitlines()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("start")
    return write_recipe(home / "tiny.yaml", write_shards(home))


def status(recipe: Path, name: str) -> dict:
    return json.loads((recipe.parent / "runs" / name / "status.json").read_text())


def wait_until_joined(port: int, connections: int) -> None:
    """Until so many ranks are connected to rank 0's store, its own among them (proc(5): net/tcp)."""
    deadline, there = time.monotonic() + 500, 0
    while there < connections:
        assert time.monotonic() < deadline, f"{there} of {connections} ranks have come"
        time.sleep(0.2)
        rows = [
            line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
        there = sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_a_peer_that_never_comes_is_named(recipe: Path):
    overrides = ("run.name=alone", "engine.start_timeout_seconds=2")
    code, lines = Start(recipe, rank(0, 2, free_port()), *overrides).end()
    assert code == 1
    assert len(lines) == 1
    assert (
        "1 of 2 ranks did not come within 2 s (engine.start_timeout_seconds): 1 missing; here are rank 0 on" in lines[0]
    )
    assert lines[0].startswith(f"duoflow: rank 0 on {socket.gethostname().partition('.')[0]}: ")
    left = status(recipe, "alone")
    assert (left["state"], left["exit_code"]) == ("failed", 1)
    assert lines[0].endswith(left["message"])


def test_rank_0_that_never_comes_leaves_a_status_by_another(recipe: Path):
    overrides = ("run.name=headless", "engine.start_timeout_seconds=2")
    code, lines = Start(recipe, rank(1, 2, free_port()), *overrides).end()
    assert (code, len(lines)) == (1, 1)
    assert "rank 0 did not answer at 127.0.0.1 port" in lines[0]
    assert status(recipe, "headless")["exit_code"] == 1


def test_a_listener_that_is_not_rank_0_holds_nobody(recipe: Path):
    overrides = ("run.name=silent", "engine.start_timeout_seconds=2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = Start(recipe, rank(1, 2, silent.getsockname()[1]), *overrides)
        code, lines = start.end()
    assert (code, len(lines)) == (1, 1)
    assert "something else listens there" in lines[0]


def test_a_name_and_a_port_that_are_wrong_are_the_users_mistake(recipe: Path):
    overrides = ("run.name=nameless", "engine.start_timeout_seconds=1")
    code, lines = Start(recipe, rank(1, 2, free_port(), "name.invalid"), *overrides).end()
    assert (code, len(lines)) == (2, 1)
    assert "MASTER_ADDR=name.invalid has no address here" in lines[0]
    assert status(recipe, "nameless")["exit_code"] == 2
    with socket.create_server(("", 0)) as other:
        code, lines = Start(recipe, rank(0, 2, other.getsockname()[1]), "run.name=busy").end()
    assert (code, len(lines)) == (2, 1)
    assert "another program listens there; choose a port" in lines[0]


@pytest.mark.parametrize("signalled", [0, 1])
def test_sigterm_is_heard_while_ranks_wait_and_the_others_hear_of_it(recipe: Path, signalled: int):
    port, overrides = free_port(), (f"run.name=stopped{signalled}", "engine.start_timeout_seconds=600")
    waiting = [Start(recipe, rank(number, 3, port), *overrides) for number in range(signalled + 1)]
    wait_until_joined(port, len(waiting))
    waiting[signalled].process.send_signal(signal.SIGTERM)
    ended = [start.end() for start in waiting]
    assert [code for code, _ in ended] == [75] * len(waiting)
    assert all(lines[-1].startswith("duoflow: stopped by SIGTERM") for _, lines in ended)
    left = status(recipe, f"stopped{signalled}")
    assert (left["state"], left["exit_code"]) == ("stopped", 75)


def test_a_rank_that_is_there_twice_and_other_world_sizes_are_refused_by_all(recipe: Path):
    port = free_port()
    places = [rank(0, 3, port), rank(1, 3, port), rank(1, 3, port)]
    ended = [start.end() for start in [Start(recipe, place, "run.name=twice") for place in places]]
    assert [code for code, _ in ended] == [2, 2, 2]
    assert all("rank 1 is there twice, as process" in lines[-1] for _, lines in ended)
    port = free_port()
    ended = [
        start.end()
        for start in [Start(recipe, place, "run.name=sizes") for place in (rank(0, 2, port), rank(1, 3, port))]
    ]
    assert [code for code, _ in ended] == [2, 2]
    assert all("started as one of 3 ranks, and rank 0 as one of 2" in lines[-1] for _, lines in ended)


def test_another_live_run_keeps_its_status(recipe: Path):
    from trainer.run_directory import RunDirectory

    directory = RunDirectory(recipe.parent / "runs" / "occupied")
    directory.create()
    with directory.lock():
        directory.change_status("running", message="somebody else's")
        overrides = ("run.name=occupied", "engine.start_timeout_seconds=1")
        code, _ = Start(recipe, rank(1, 2, free_port(), "name.invalid"), *overrides).end()
        assert code == 2
        assert status(recipe, "occupied")["message"] == "somebody else's"


def test_tasks_of_srun_find_themselves_and_a_killed_one_is_named(recipe: Path):
    """Two tasks with Slurm's variables alone; the second is killed in the middle of training."""
    port = str(free_port())
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    overrides = ("run.name=slurm", "limits.epochs=500", "data.val=null", "engine.timeout_seconds=60")
    tasks = [
        Start(
            recipe,
            step | {"MASTER_PORT": port, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
            *overrides,
        )
        for number in (0, 1)
    ]
    metrics = recipe.parent / "runs" / "slurm" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() and tasks[0].process.is_running and time.monotonic() < deadline:
        time.sleep(0.2)
    tasks[1].process.send_signal(signal.SIGKILL)
    (first, lines), (second, _) = (task.end() for task in tasks)
    assert (first, second) == (1, -signal.SIGKILL)
    assert "rank 1 on" in lines[-1] or "rank 1 ended" in lines[-1]
    left = status(recipe, "slurm")
    assert (left["state"], left["exit_code"]) == ("failed", 1)
    assert "ended without a word: it was killed, or its host is gone" in left["message"]
    log = (recipe.parent / "runs" / "slurm" / "logs" / "rank0.log").read_text()
    assert "stacks of all threads" in log
    assert "training/rank.py" in log
