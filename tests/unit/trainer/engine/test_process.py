"""What a process concludes from its starter's environment: never that it is alone where it is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import ConfigError
from trainer.engine.process import Place, port_of_job, read_place

MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "gpu[01-02]",
    "ENVIRONMENT": "BATCH",
}
TASK = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def launched(rank: str, size: str, local: str) -> dict[str, str]:
    return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local}


def test_without_a_starter_a_process_is_alone():
    assert read_place({}) == Place(0, 0, 1)
    assert read_place({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}) == Place(0, 0, 1)


def test_the_launchers_numbers_are_taken():
    assert read_place(launched("5", "8", "1") | MEETING) == Place(5, 1, 8, "10.0.0.1", 29500)
    assert read_place(launched("0", "1", "0")) == Place(0, 0, 1), "one rank needs nobody's address"


@pytest.mark.parametrize(
    "values", [("8", "8", "0"), ("-1", "8", "0"), ("0", "8", "-1"), ("0", "0", "0"), ("a", "8", "0"), ("", "", "")]
)
def test_numbers_that_contradict_each_other_are_refused(values: tuple[str, str, str]):
    with pytest.raises(ConfigError, match=r"^environment: "):
        read_place(launched(*values) | MEETING)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_half_an_environment_is_refused_rather_than_completed(missing: str):
    environment = launched("0", "2", "0") | MEETING
    del environment[missing]
    with pytest.raises(ConfigError, match="must all be integers"):
        read_place(environment)


@pytest.mark.parametrize(
    "change", [{"MASTER_ADDR": ""}, {"MASTER_PORT": "0"}, {"MASTER_PORT": "99999"}, {"MASTER_PORT": "x"}]
)
def test_several_ranks_need_a_place_to_meet(change: dict[str, str]):
    with pytest.raises(ConfigError, match=r"^environment: 2 ranks, but MASTER_ADDR="):
        read_place(launched("0", "2", "0") | MEETING | change)


def test_a_task_of_srun_finds_itself_and_the_host_of_task_0():
    assert read_place(TASK) == Place(3, 1, 4, "gpu07", port_of_job(77, 1))
    assert read_place(TASK | MEETING) == Place(3, 1, 4, "10.0.0.1", 29500), "what the script has set stands"


def test_all_tasks_of_a_step_work_out_the_same_meeting_place_and_other_steps_another():
    places = {read_place(TASK | {"SLURM_PROCID": str(rank)})[3:] for rank in range(4)}
    assert len(places) == 1
    assert read_place(TASK | {"SLURM_STEP_ID": "2"}).port != read_place(TASK).port
    assert all(20_000 <= port_of_job(job, 0) < 32_768 for job in (0, 1, 12_345, 2**31))


def test_a_task_is_told_by_its_numbers_alone():
    plain = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    assert read_place(plain | MEETING) == Place(1, 0, 2, "10.0.0.1", 29500)
    assert read_place(plain | MEETING | {"SLURM_PROCID": "0"}).world_size == 2
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=\(unset\)"):
        read_place(plain)


def test_a_step_of_one_task_in_a_larger_job_is_alone():
    assert read_place(TASK | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == Place(0, 0, 1)


@pytest.mark.parametrize(
    "environment",
    [
        BATCH_SCRIPT,
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"},  # a shell of salloc on the login node
        BATCH_SCRIPT | {"SLURM_STEP_ID": "4294967290"},  # a shell of salloc on the first node
        {"SLURM_NPROCS": "2"},
    ],
)
def test_what_is_no_task_of_its_larger_job_does_not_train_alone(environment: dict[str, str]):
    with pytest.raises(ConfigError, match=r"is no task of Slurm job .*srun .*duoflow train .*RANK=0") as refused:
        read_place(environment)
    assert "\n" not in str(refused.value)
    assert read_place(environment | launched("0", "1", "0")) == Place(0, 0, 1), "unless somebody says so"
    assert read_place(environment | launched("1", "2", "1") | MEETING).rank == 1, (
        "a launcher on one node goes on working"
    )


def test_tasks_that_each_start_a_launcher_of_one_rank_are_refused():
    with pytest.raises(ConfigError, match="this is one of 4 processes that srun or mpirun started"):
        read_place(TASK | launched("0", "1", "0"))


def test_a_task_without_a_number_of_tasks_is_refused():
    with pytest.raises(ConfigError, match="SLURM_PROCID=1 without SLURM_NTASKS"):
        read_place({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"})


@pytest.mark.parametrize(
    ("rank", "size", "local"),
    [
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ],
)
def test_processes_of_mpirun_find_themselves(rank: str, size: str, local: str):
    own = {rank: "3", size: "4", local: "1"}
    assert read_place(own | MEETING) == Place(3, 1, 4, "10.0.0.1", 29500)
    # mpirun starts its agents as tasks of a step: their numbers are those of nodes.
    assert read_place(TASK | own | MEETING | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}).rank == 3
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=\(unset\)"):
        read_place(own)
    del own[local]
    with pytest.raises(ConfigError, match="not which one on its node"):
        read_place(own | MEETING)


def test_slurms_own_pmi_numbers_do_not_hide_its_tasks():
    assert read_place(TASK | {"PMI_RANK": "3", "PMI_SIZE": "4", "PMIX_RANK": "3"}).rank == 3


def test_a_rank_of_pmix_without_a_size_is_not_alone():
    with pytest.raises(ConfigError, match=r"PMIX_RANK=1 says that this is a process of a larger job"):
        read_place({"PMIX_RANK": "1"})


LEAVING = """
import atexit
import os
import sys
from trainer.engine.process import leave

class TakenDown:
    def __del__(self, write=os.write):
        write(1, b" taken down")

taken_down = TakenDown()
atexit.register(lambda: print(" registered", end=""))
print("torch" in sys.modules, end="")
leave(3)
"""


def test_leaving_does_what_is_registered_and_does_not_take_the_interpreter_down():
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, cwd=Path(__file__).parents[4])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"False registered", b"")
