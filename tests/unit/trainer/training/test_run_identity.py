"""Whether a run goes on is decided by rank 0's disk, and by none that belongs to another run."""

import json
from pathlib import Path

import pytest

from shards.errors import ConfigError, DataError, UserError
from tests.thread_ranks import on_ranks
from trainer.engine.distributed import World
from trainer.run_directory import RunDirectory, Status, write_json
from trainer.training.preflight import check_not_lost
from trainer.training.run_identity import Held, agree_on_run, check_held, keep_id, read_id

PATH = "runs/tiny"


def checkpoint(directory: RunDirectory, *, step: int = 40, run: str | None = "aaaa") -> None:
    record = {"progress": {"global_step": step, "identity": {"train": "1"}}} | ({} if run is None else {"run": run})
    write_json(directory.checkpoints / "step40" / "state.json", record)
    (directory.checkpoints / "last").write_text("step40\n")


@pytest.mark.parametrize(
    "held",
    [
        [Held("fvn1"), Held("fvn2")],  # a new run
        [Held("fvn1", "aaaa", 40), Held("fvn2", "aaaa", 40)],  # a shared disk
        [Held("fvn1", "aaaa", 40), Held("fvn2", "aaaa")],  # disks of their own
        [Held("fvn1", "aaaa", 40), Held("fvn2")],  # a host that is new
        [Held("fvn1", None, 40), Held("fvn2", None, 40)],  # of the time before ids
    ],
)
def test_what_can_be_one_run_is_let_through(held: list[Held]):
    check_held(held, PATH)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (
            [Held("fvn2", "aaaa"), Held("fvn1", "aaaa", 40)],
            "fvn2 has no checkpoint, and fvn1 has one of step 40: start",
        ),
        (
            [Held("fvn2"), Held("fvn1", None, 40)],
            "fvn2 has no checkpoint, and fvn1 has one of step 40: start with rank 0",
        ),
        ([Held("fvn1", "aaaa", 40), Held("fvn2", "bbbb")], "fvn1 has run aaaa, and fvn2 has another one, bbbb"),
        ([Held("fvn1"), Held("fvn2", "aaaa")], "fvn1 has no run yet, and fvn2 has been part of run aaaa"),
    ],
)
def test_what_cannot_is_refused_with_both_hosts_in_one_line(held: list[Held], said: str):
    with pytest.raises(ConfigError) as refused:
        check_held(held, PATH)
    assert str(refused.value).startswith(f"{PATH}: {said}")
    assert "\n" not in str(refused.value)


def test_all_ranks_hear_the_id_and_the_past_of_rank_0(tmp_path: Path):
    directories = [RunDirectory(tmp_path / host) for host in ("fvn1", "fvn2")]
    checkpoint(directories[0])
    first, second = on_ranks(2, lambda world: agree_on_run(directories[world.rank], world))
    assert first == second
    assert (first.run, first.past.step, first.past.trained_on) == ("aaaa", 40, {"train": "1"})


def test_a_new_run_gets_an_id_that_each_host_keeps(tmp_path: Path):
    directories = [RunDirectory(tmp_path / host) for host in ("fvn1", "fvn2")]
    for directory in directories:
        directory.create()
    first, second = on_ranks(2, lambda world: agree_on_run(directories[world.rank], world))
    assert first == second
    assert first.past is None
    assert len(first.run) == 16
    for directory in directories:
        keep_id(directory, World(), first.run)
    assert [read_id(directory) for directory in directories] == [first.run] * 2


def test_a_refusal_reaches_all_ranks(tmp_path: Path):
    directories = [RunDirectory(tmp_path / host) for host in ("fvn1", "fvn2")]
    checkpoint(directories[1])

    def act(world: World) -> str:
        with pytest.raises(UserError) as refused:
            agree_on_run(directories[world.rank], world)
        return str(refused.value)

    first, second = on_ranks(2, act)
    assert first == second
    assert "rank 0 has no checkpoint, and rank 1 has one of step 40" in first


@pytest.mark.parametrize("trace", ["status", "identity"])
def test_a_run_whose_checkpoints_are_gone_does_not_start_over_in_silence(tmp_path: Path, trace: str):
    directory = RunDirectory(tmp_path)
    directory.create()
    check_not_lost(directory)
    if trace == "status":
        directory.write_status(Status(state="stopped", global_step=143))
    else:
        write_json(directory.identity, {"run": "aaaa"})
    with pytest.raises(DataError, match=r"holds no checkpoint, but this run has had one.*--fresh"):
        check_not_lost(directory)
    with pytest.raises(ConfigError, match="--fresh"):
        agree_on_run(directory, World())
    checkpoint(directory)
    check_not_lost(directory)


def test_a_start_that_failed_before_its_first_checkpoint_may_start_again(tmp_path: Path):
    directory = RunDirectory(tmp_path)
    directory.create()
    directory.change_status("failed", exit_code=1, message="no memory")
    check_not_lost(directory)


def test_a_damaged_id_is_a_line(tmp_path: Path):
    directory = RunDirectory(tmp_path)
    for text in ("", "[]", "{}", '{"run"'):
        directory.identity.write_text(text)
        with pytest.raises(DataError, match=r"identity.json: damaged; start over with --fresh, or remove this file"):
            read_id(directory)


def test_an_id_that_is_there_already_is_not_written_again(tmp_path: Path):
    directory = RunDirectory(tmp_path)
    keep_id(directory, World(), "aaaa")
    written = directory.identity.stat().st_mtime_ns
    keep_id(directory, World(), "aaaa")
    assert directory.identity.stat().st_mtime_ns == written
    assert json.loads(directory.identity.read_text()) == {"run": "aaaa"}
