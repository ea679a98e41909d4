"""`launch/slurm.sbatch` on two nodes of a Slurm cluster: tasks train, requeued jobs go on, codes are those of runs."""

import sys
from collections.abc import Iterator

import pytest

from tests.distributed.training_runs import DROPOUT
from tests.multinode.lab import ROOT, Host
from tests.multinode.ranks import MISTAKE, STOPPED
from tests.multinode.runs import ENDLESS, Project, Run, assert_same_bits
from tests.multinode.slurm import Slurm, what_is_missing

SCRIPT = ROOT / "launch/slurm.sbatch"
SHAPE = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
JOB_SECONDS = 400.0
PATIENT = "engine.start_timeout_seconds=120"
"""Tasks import torch on their own here, and on a busy machine not at the same time."""


@pytest.fixture(scope="module")
def slurm(two: tuple[Host, Host], project: Project) -> Iterator[Slurm]:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    with Slurm(two, project.directory / "slurm") as cluster:
        cluster.environment = {**cluster.environment, "DUOFLOW_PYTHON": sys.executable}
        yield cluster


def _submission(project: Project, name: str, *words: str) -> tuple[str, ...]:
    output = project.directory / f"{name}.job.txt"
    return ("sbatch", "--parsable", *SHAPE, f"--output={output}", *words)


def _said(project: Project, name: str) -> str:
    return (project.directory / f"{name}.job.txt").read_text()


def test_a_job_trains_on_two_nodes_with_the_bits_of_one_host(slurm: Slurm, project: Project, on_one_host: Run):
    submission = _submission(project, "job", "--wait")
    done = slurm.run(*submission, SCRIPT, project.recipe, "run.name=job", PATIENT, *DROPOUT, seconds=JOB_SECONDS)
    assert done.returncode == 0, _said(project, "job") + done.stderr + slurm.log
    run = project.run("job")
    assert_same_bits(run, on_one_host)
    environment = (run.path / "environment.json").read_text()
    assert all(name in environment for name in ("node1", "node2"))


def test_a_mistake_ends_the_job_with_its_code_and_a_line(slurm: Slurm, project: Project):
    submission = _submission(project, "mistaken", "--wait")
    done = slurm.run(*submission, SCRIPT, project.recipe, "run.name=mistaken", "optim.learning_rate=1")
    assert done.returncode == MISTAKE, _said(project, "mistaken") + done.stderr
    (line,) = _said(project, "mistaken").strip().splitlines()
    assert "optim.learning_rate" in line


@pytest.mark.slow
def test_a_job_whose_time_is_up_saves_is_queued_again_and_goes_on(slurm: Slurm, project: Project):
    """Slurm signals up to a minute before it should, and looks at time limits twice a minute."""
    run = project.run("requeued")
    limits = ("--time=6", "--signal=TERM@240")
    words = (SCRIPT, project.recipe, "run.name=requeued", PATIENT, *ENDLESS, "logging.every_steps=1")
    job = slurm(*_submission(project, "requeued", *limits), *words).strip()
    run.wait_for_step(2, JOB_SECONDS)
    slurm.wait_for(job, "RUNNING", restarts=1)
    stopped = run.progress("last")["global_step"]
    assert stopped >= 2
    run.wait_for_step(stopped + 1, JOB_SECONDS)

    slurm("scontrol", "requeue", job)
    slurm.wait_for(job, "RUNNING", restarts=2)
    again = run.progress("last")["global_step"]
    assert again > stopped
    run.wait_for_step(again + 1, JOB_SECONDS)

    slurm("scancel", job)
    slurm.wait_for(job, "CANCELLED", restarts=2)
    assert (run.status["state"], run.status["exit_code"]) == ("stopped", STOPPED), _said(project, "requeued")
    assert list(run.losses) == list(range(1, run.status["global_step"] + 1)), "each step once"


@pytest.mark.slow
def test_a_job_starts_its_hosts_through_ssh_where_it_is_told_to(slurm: Slurm, project: Project, on_one_host: Run):
    slurm.environment = {**slurm.environment, "DUOFLOW_VARIANT": "hostfile"}
    submission = _submission(project, "through_ssh", "--wait", "--signal=B:TERM@300")
    done = slurm.run(
        *submission, SCRIPT, project.recipe, "run.name=through_ssh", PATIENT, *DROPOUT, seconds=JOB_SECONDS
    )
    assert done.returncode == 0, _said(project, "through_ssh") + done.stderr
    assert_same_bits(project.run("through_ssh"), on_one_host)
