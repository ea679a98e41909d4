"""Faults while a run trains over hosts: every rank leaves in time, and the run says which host was lost."""

import time

from tests.multinode.lab import Host
from tests.multinode.ranks import DONE, FAILED, KILLED, Crew, Start
from tests.multinode.runs import ENDLESS, LATENESS, SLACK, TIMEOUT_SECONDS, Project, Run

SAVING = ("checkpoint.every_steps=3",)


def _training(crew: Crew, hosts: tuple[Host, ...], project: Project, name: str) -> tuple[Start, Run]:
    start = crew.start(hosts, project.recipe, f"run.name={name}", *ENDLESS, *SAVING)
    run = project.run(name)
    run.wait_for_step(5)
    return start, run


def _assert_ended_in_time(start: Start, ranks: list[int], fault: float, *, within: float) -> None:
    for number in ranks:
        assert start.ranks[number].code() == FAILED, start.said
        assert start.ranks[number].end_time() - fault <= within + SLACK, (number, start.said)


def _assert_names(run: Run, host: Host, rank: int) -> None:
    status = run.status
    assert (status["state"], status["exit_code"]) == ("failed", FAILED)
    assert f"rank {rank} on {host.name}" in status["message"], status["message"]


def _assert_goes_on(crew: Crew, hosts: tuple[Host, ...], project: Project, run: Run) -> None:
    saved = run.progress("last")["global_step"]
    assert saved >= 3
    goes_on = (f"run.name={run.path.name}", *ENDLESS, *SAVING, f"limits.max_steps={saved + 2}")
    again = crew.start(hosts, project.recipe, *goes_on)
    assert again.codes() == [DONE] * len(hosts), again.said
    assert run.status["global_step"] == saved + 2
    assert list(run.losses) == list(range(1, saved + 3)), "each step once"


def test_a_link_that_goes_down_ends_both_hosts_within_the_timeout(two: tuple[Host, Host], crew: Crew, project: Project):
    start, run = _training(crew, two, project, "cut")
    two[1].unplug()
    fault = time.monotonic()
    try:
        _assert_ended_in_time(start, [0, 1], fault, within=TIMEOUT_SECONDS + LATENESS)
    finally:
        two[1].plug()
    _assert_names(run, two[1], 1)
    _assert_goes_on(crew, two, project, run)


def test_a_killed_rank_is_named_at_once(two: tuple[Host, Host], crew: Crew, project: Project):
    start, run = _training(crew, two, project, "killed")
    start.ranks[1].signal("SIGKILL")
    fault = time.monotonic()
    assert start.ranks[1].code() == KILLED
    _assert_ended_in_time(start, [0], fault, within=TIMEOUT_SECONDS)
    _assert_names(run, two[1], 1)
    _assert_goes_on(crew, two, project, run)


def test_a_rank_that_hangs_is_named_and_shown(two: tuple[Host, Host], crew: Crew, project: Project):
    start, run = _training(crew, two, project, "hung")
    start.ranks[1].signal("SIGSTOP")
    fault = time.monotonic()
    _assert_ended_in_time(start, [0], fault, within=TIMEOUT_SECONDS + LATENESS)
    _assert_names(run, two[1], 1)
    assert "in fit" in run.directory.rank_log(0).read_text(), "the stacks of a rank that waits are in its log"


def test_a_host_that_is_gone_for_good_leaves_a_run_for_fewer_hosts(
    four: tuple[Host, ...], crew: Crew, project: Project
):
    start, run = _training(crew, four, project, "host_gone")
    four[3].power_off()
    fault = time.monotonic()
    _assert_ended_in_time(start, [0, 1, 2], fault, within=TIMEOUT_SECONDS + LATENESS)
    _assert_names(run, four[3], 3)
    _assert_goes_on(crew, four[:2], project, run)
