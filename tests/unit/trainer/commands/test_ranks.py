"""Work on the ranks of this machine: one code of all, and who was killed has a name."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.processes.local import Outcome
from launch.processes.ranks import record_end, record_rank
from tests.processes import leave_record
from trainer.commands import ranks as module
from trainer.commands.ranks import work_on_ranks
from trainer.config import RunConfig
from trainer.training.preflight import Machine

Leave = Callable[[Path], None]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Two ranks that leave records, in the place of two that work."""

    def run(leave: Leave, outcome: Outcome) -> int:
        def launched(_module: str, _arguments: list[str], _config: RunConfig, _machine: Machine, left: Path) -> Outcome:
            leave(left)
            return outcome

        monkeypatch.setattr(module, "launch_ranks", launched)
        return work_on_ranks("some.module", [], RunConfig(), Machine(2, 0, ()))

    return run


def ended(*codes: int) -> Leave:
    def leave(left: Path) -> None:
        for rank, code in enumerate(codes):
            record_rank(left, rank)
            record_end(left, rank, code)

    return leave


@pytest.mark.parametrize(
    ("codes", "together"), [((0, 0), 0), ((0, 2), 2), ((1, 2), 2), ((75, 0), 75), ((1, 75), 1), ((0, 1), 1)]
)
def test_the_gravest_code_is_that_of_all(work, codes: tuple[int, ...], together: int, capsys):
    assert work(ended(*codes), Outcome(together, stopped_early=False, killed=False)) == together
    assert capsys.readouterr().err == ""


def test_a_start_that_was_stopped_is_no_failure(work):
    assert work(lambda _: None, Outcome(-15, stopped_early=True, killed=False)) == 75


def test_a_rank_that_was_killed_is_named(work, capsys):
    def leave(left: Path) -> None:
        ended(0)(left)
        leave_record(left, rank=1, pid=4_000_000, host=socket.gethostname(), started="1")

    assert work(leave, Outcome(247, stopped_early=False, killed=False)) == 1
    error = capsys.readouterr().err
    assert "rank 1 on " in error
    assert "(process 4000000) was ended by signal 9 (SIGKILL)" in error
    assert error.strip().endswith("run the same command again")


def test_ranks_that_were_killed_before_they_were_up_are_explained(work, capsys):
    memory = "memory is the likely cause: the cgroup counted 1 oom_kill since the start"
    assert work(lambda _: None, Outcome(247, stopped_early=False, killed=False, want_of_memory=memory)) == 1
    assert f"the ranks ended without a word before they were up; {memory}" in capsys.readouterr().err
    assert work(lambda _: None, Outcome(1, stopped_early=False, killed=False, want_of_memory=memory)) == 1
    assert "before they were up" not in capsys.readouterr().err
