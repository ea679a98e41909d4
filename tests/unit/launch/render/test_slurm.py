"""The job script: what sbatch is told, and what it does where srun, scontrol and scancel are scripts of a few lines."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch.plan.words import LaunchFault
from launch.render.slurm import SCRIPT, SlurmOptions, sbatch_script
from tests.unit.launch.render.golden import check_golden

OPTIONS = SlurmOptions(name="gqa", nodes=4, gpus_per_node=8, time="2-00:00:00", partition="gpu")
JOB = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_CPUS_PER_TASK": "3",
}
TOOLS = {
    "scontrol": """
echo "$@" >> called
case "$*" in
"show job"*) echo "JobId=123456 JobName=a JobState=$(cat state) Reason=None" ;;
"show hostnames"*) printf "n1\\nn2\\n" ;;
esac
""",
    "scancel": 'echo scancel "$@" >> called; kill -TERM "$(cat task)"',
    "srun": 'env > environment; shift; exec "$@"',
    # The Python of the job: `train ... --prepare N` prints the configuration, `trainer.train` is a rank.
    "python": """
case "$*" in
*--prepare*) echo "$@" > prepared; [ ! -e finished ] || exit 0; cat prints 2>/dev/null; exit "$(cat prepares)" ;;
*--hostfile*) shift; echo "$@" > started; for word; do [ ! -f "$word" ] || cp "$word" hosts; done; exit "$(cat ends)" ;;
esac
trap 'cp stopped runs/a/status.json; exit 75' TERM
echo $$ > task
for i in $(seq "$(cat trains)"); do sleep 0.05; done
[ ! -e done ] || cp done runs/a/status.json
exit "$(cat ends)"
""",
}


class Job:
    """A submitted script, in a directory where the tools lie."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "runs/a").mkdir(parents=True)
        (directory / "bin").mkdir()
        for name, body in TOOLS.items():
            tool = directory / "bin" / name
            tool.write_text(f"#!/bin/bash\n{body}\n")
            tool.chmod(0o755)
        self.write(state="RUNNING", prepares="0", ends="0", trains="0", prints=f"{directory}/runs/a/config.yaml\n")
        self.status("running", None)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.directory / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()

    def status(self, state: str, code: int | None, name: str = "runs/a/status.json") -> None:
        (self.directory / name).write_text(json.dumps({"state": state, "exit_code": code, "message": ""}, indent=1))

    def start(self, *arguments: str, script: Path = SCRIPT, **environment: str) -> subprocess.Popen[str]:
        path = f"{self.directory}/bin:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            cwd=self.directory,
            env={"PATH": path, "DUOFLOW_PYTHON": "python", **JOB, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **options) -> int:
        job = self.start(*arguments, **options)
        _, errors = job.communicate(timeout=300)
        assert "unbound" not in errors
        return job.returncode

    def was_requeued(self) -> bool:
        return "requeue 123456" in self.read("called")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


class TestJob:
    def test_the_recipe_is_resolved_once_for_all_tasks_and_ranks_find_each_other(self, job: Job):
        job.status("done", 0, "done")
        assert job.run("r.yaml", "data.train=a b") == 0
        assert job.read("prepared") == "-m trainer.cli train r.yaml data.train=a b --prepare 4\n"
        environment = dict(line.split("=", 1) for line in job.read("environment").splitlines() if "=" in line)
        assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("n1", "23456")
        assert (environment["OMP_NUM_THREADS"], environment["SRUN_CPUS_PER_TASK"]) == ("3", "3")

    @pytest.mark.parametrize("code", [1, 2, 0])
    def test_the_code_is_that_of_the_status(self, job: Job, code: int):
        job.status("failed", code, "done")
        job.write(ends="9")
        assert job.run("r.yaml") == code
        assert not job.was_requeued()

    @pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
    def test_a_job_that_somebody_has_cancelled_is_not_queued_again(self, job: Job, state: str):
        job.status("stopped", 75, "done")
        job.write(ends="75", state=state)
        assert job.run("r.yaml") == 75
        assert not job.was_requeued()

    def test_a_run_that_was_stopped_and_saved_is_queued_again(self, job: Job):
        job.status("stopped", 75, "done")
        job.write(ends="75")
        assert job.run("r.yaml") == 75
        assert job.was_requeued()

    @pytest.mark.parametrize(("ends", "code"), [("9", 9), ("0", 1)])
    def test_tasks_that_end_without_a_word_are_a_failure(self, job: Job, ends: str, code: int):
        job.write(ends=ends)
        assert job.run("r.yaml") == code
        assert not job.was_requeued()

    def test_a_mistake_ends_the_job_before_any_task_starts(self, job: Job):
        job.write(prepares="2", prints="")
        assert job.run("r.yaml") == 2
        assert not (job.directory / "environment").exists()

    def test_a_finished_run_starts_nothing(self, job: Job):
        job.write(finished="")
        assert job.run("r.yaml") == 0
        assert not (job.directory / "environment").exists()

    def test_a_signal_to_the_script_reaches_the_tasks_which_save(self, job: Job):
        job.status("stopped", 75, "stopped")
        job.write(trains="600")
        started = job.start("r.yaml")
        deadline = time.monotonic() + 300
        while not (job.directory / "task").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=300)
        assert started.returncode == 75
        assert "scancel --signal=TERM 123456" in job.read("called")
        assert job.was_requeued()

    def test_hosts_of_the_allocation_become_a_hostfile(self, job: Job):
        job.write(ends="75")
        assert job.run("r.yaml", DUOFLOW_VARIANT="hostfile") == 75
        assert job.read("hosts") == "n1 slots=2\nn2 slots=2\n"
        assert job.read("started").rstrip().endswith("-- --master_port=23456")
        assert job.was_requeued()

    def test_a_rendered_script_brings_its_arguments_whatever_is_in_them(self, job: Job):
        job.status("done", 0, "done")
        script = job.directory / "job.sbatch"
        words = ["r.yaml", "run.name=$(touch evil)", "a='b\"c"]
        script.write_text(sbatch_script(OPTIONS, words, python=str(job.directory / "bin/python")))
        assert job.run(script=script) == 0
        assert f"train {' '.join(words)} --prepare 4" in job.read("prepared")
        assert not (job.directory / "evil").exists()


@pytest.mark.parametrize("variant", ["srun", "hostfile"])
def test_golden(variant):
    options = OPTIONS._replace(variant=variant)
    check_golden(f"slurm_{variant}.txt", sbatch_script(options, ["r.yaml", "a=b c"], python="/opt/python"))


def test_without_gpus_none_are_asked_for():
    text = sbatch_script(OPTIONS._replace(gpus_per_node=0), ["r.yaml"], python="python3")
    assert "gpus-per-node" not in text
    assert "#SBATCH --ntasks-per-node=1\n" in text
    assert "export DS_ACCELERATOR=cpu\n" in text


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("name", "a b", "--name"),
        ("name", "a\n#SBATCH --uid=0", "--name"),
        ("name", "$(id)", "--name"),
        ("partition", "-x", "--partition"),
        ("time", "tomorrow", "--time"),
        ("time", "1:00\n", "--time"),
        ("nodes", 0, "--nodes"),
        ("gpus_per_node", -1, "--gpus-per-node"),
    ],
)
def test_options_that_sbatch_would_read_otherwise_are_refused(field: str, value: object, flag: str):
    with pytest.raises(LaunchFault, match=f"^{flag} "):
        sbatch_script(OPTIONS._replace(**{field: value}), ["r.yaml"], python="python3")


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    found = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert found.stdout == ""
