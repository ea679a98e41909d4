"""Training over hosts: the losses and bits of one host, whatever the links and however often the hosts change."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.distributed.training_runs import DROPOUT, EARLY
from tests.multinode.lab import Host, Lab
from tests.multinode.ranks import DONE, STOPPED, Crew
from tests.multinode.runs import Project, Run, assert_same_bits
from tests.runs import STEPS_PER_EPOCH, TOTAL_STEPS

CONSTANT = "optim.final_lr_ratio=1.0"


def test_two_hosts_learn_what_two_ranks_of_one_host_learn_to_the_bit(
    two: tuple[Host, Host], crew: Crew, project: Project, on_one_host: Run
):
    start = crew.start(two, project.recipe, "run.name=two_hosts", *DROPOUT)
    assert start.codes() == [DONE, DONE], start.said
    assert_same_bits(project.run("two_hosts"), on_one_host)
    environment = (project.run("two_hosts").path / "environment.json").read_text()
    assert all(host.name in environment for host in two)


def test_a_stop_on_the_second_host_is_saved_and_the_run_goes_on_to_the_same_bits(
    two: tuple[Host, Host], crew: Crew, project: Project, on_one_host: Run
):
    run = project.run("stopped")
    with _slow(two):  # so that there is time for a signal
        start = crew.start(two, project.recipe, "run.name=stopped", *DROPOUT)
        run.wait_for_step(2)
        start.ranks[1].signal("SIGTERM")
        assert start.codes() == [STOPPED, STOPPED], start.said
    assert (run.status["state"], run.status["exit_code"]) == ("stopped", STOPPED)
    assert 2 <= run.status["global_step"] < TOTAL_STEPS
    again = crew.start(two, project.recipe, "run.name=stopped", *DROPOUT)
    assert again.codes() == [DONE, DONE], again.said
    assert_same_bits(run, on_one_host)


def test_early_stopping_is_agreed_between_hosts(two: tuple[Host, Host], crew: Crew, project: Project):
    early = (*EARLY, "optim.lr=0.03", "limits.epochs=20")
    start = crew.start(two, project.recipe, "run.name=early", *early)
    assert start.codes() == [DONE, DONE], start.said
    run = project.run("early")
    assert "stopped early after 2 validations" in run.status["message"]
    assert run.status["global_step"] < 20 * STEPS_PER_EPOCH
    assert run.exported["step"] == run.progress("best")["global_step"]


@pytest.mark.parametrize(
    "link",
    [
        pytest.param("50 ms and 1 % loss", id="delay_and_loss"),
        pytest.param("100 Mbit/s", id="rate", marks=pytest.mark.slow),
    ],
)
def test_a_slow_link_costs_time_and_no_bit(
    link: str,
    lab: Lab,
    two: tuple[Host, Host],
    crew: Crew,
    project: Project,
    on_one_host: Run,
    request: pytest.FixtureRequest,
):
    name = request.node.callspec.id
    with ExitStack() as stack:
        if link == "100 Mbit/s":
            for host in two:
                stack.enter_context(host.limited_to("100mbit"))
        else:
            stack.enter_context(lab.slow_switch(delay_seconds=0.05, loss=0.01))
        start = crew.start(two, project.recipe, f"run.name={name}", *DROPOUT)
        assert start.codes(300) == [DONE, DONE], start.said
    assert_same_bits(project.run(name), on_one_host)


def test_a_run_goes_from_two_hosts_to_four_that_were_added_and_to_one(
    two: tuple[Host, Host], crew: Crew, project: Project, request: pytest.FixtureRequest
):
    """Dropout is off, for its masks are those of a rank, and no learning rate depends on the limit of steps."""
    run = project.run("elastic")
    expected = crew.start(two[:1], project.recipe, "run.name=alone", CONSTANT)
    elastic = (project.recipe, "run.name=elastic", CONSTANT)
    start = crew.start(two, *elastic, "limits.max_steps=3")
    assert (expected.codes(), start.codes()) == ([DONE], [DONE, DONE]), start.said
    four: tuple[Host, ...] = request.getfixturevalue("four")
    start = crew.start(four, *elastic, "limits.max_steps=6")
    assert start.codes() == [DONE] * 4, start.said
    start = crew.start(four[2:3], *elastic)
    assert start.codes() == [DONE], start.said
    losses, of_one = run.losses, project.run("alone").losses
    assert list(losses) == list(of_one) == list(range(1, TOTAL_STEPS + 1))
    for step, values in losses.items():
        assert values == pytest.approx(of_one[step], rel=1e-5), step
    at_the_end, of_one_at_the_end = (each.validations[TOTAL_STEPS] for each in (run, project.run("alone")))
    assert at_the_end == pytest.approx(of_one_at_the_end, rel=1e-5)


@contextmanager
def _slow(hosts: tuple[Host, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for host in hosts:
            stack.enter_context(host.limited_to("2mbit"))
        yield
