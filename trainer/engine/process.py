"""Which process of a job this is, from the environment that its starter gave it, and how it ends. Needs no torch."""

import atexit
import os
import socket
import sys
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from shards.errors import ConfigError
from trainer.engine.nodelist import expand_nodelist

_RESERVED_STEPS = 0xFFFF_FFF0
"""From here on Slurm's step ids are no steps that somebody started: the batch script, the shell of `salloc`, ..."""
_FIRST_PORT, _PORTS = 20_000, 12_000
"""Below the ports that Linux gives to connections (32768 and up), above those of services."""


class Place(NamedTuple):
    """A process among those of its job."""

    rank: int
    local_rank: int
    """Position on this node, and the number of its GPU."""
    world_size: int
    address: str | None = None
    """Of rank 0, as MASTER_ADDR has it; None where nobody said it."""
    port: int | None = None

    def __str__(self) -> str:
        return f"rank {self.rank} on {host_name()}"


class _Kin(NamedTuple):
    """The variables by which a starter numbers its processes."""

    starter: str
    rank: str
    size: str
    local_rank: str


_LAUNCHER = _Kin("the launcher", "RANK", "WORLD_SIZE", "LOCAL_RANK")
_MPI = (
    _Kin("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    _Kin("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    _Kin("Hydra", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
"""Each set by its own mpirun alone. Slurm sets PMI_RANK too, but never the local rank of Hydra (MPICH, Intel MPI)."""
_ALONE = "to train as one process all the same, set RANK=0 WORLD_SIZE=1 LOCAL_RANK=0"


def host_name() -> str:
    """What this host calls itself, without its domain."""
    return socket.gethostname().partition(".")[0]


def read_place(environment: Mapping[str, str]) -> Place:
    """Who this process is: by RANK, WORLD_SIZE and LOCAL_RANK, else by mpirun's or srun's variables, else alone.

    A process of a larger job never takes itself for a run of one.

    Raises:
        ConfigError: variables are missing, are no numbers or contradict each other.
    """
    claims = [_numbers(kin, environment) for kin in _MPI if kin.rank in environment and kin.local_rank in environment]
    task = _slurm_task(environment)
    if any(name in environment for name in _LAUNCHER[1:]):
        place = _numbers(_LAUNCHER, environment)
        larger = max((claim.world_size for claim in (*claims, task) if claim is not None), default=1)
        if place.world_size == 1 and larger > 1:
            raise ConfigError(
                f"environment: WORLD_SIZE=1, but this is one of {larger} processes that srun or mpirun started, each "
                "of which would train alone; start one launcher per node, or let srun start `python -m trainer.train`"
            )
        return _with_address(place, environment)
    if claims:
        return _with_address(claims[0], environment)
    if task is not None:
        return _with_slurm_address(task, environment)
    _check_alone(environment)
    return Place(0, 0, 1)


def export_place(place: Place) -> None:
    """Say it to the libraries of this process, which look for MPI where RANK and the others are missing."""
    os.environ.update(RANK=str(place.rank), LOCAL_RANK=str(place.local_rank), WORLD_SIZE=str(place.world_size))
    if place.address is not None and place.port is not None:
        os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))


def _numbers(kin: _Kin, environment: Mapping[str, str]) -> Place:
    found = {name: environment[name] for name in kin[1:] if name in environment}
    try:
        rank, world_size, local_rank = (int(found[name]) for name in kin[1:])
    except (KeyError, ValueError):
        raise ConfigError(
            f"environment: {kin.rank}, {kin.size} and {kin.local_rank} must all be integers, found "
            f"{', '.join(f'{name}={value}' for name, value in found.items()) or 'none of them'}; start through the "
            "deepspeed launcher, srun or mpirun, or unset them to run one process"
        ) from None
    if not 0 <= rank < world_size or local_rank < 0:
        raise ConfigError(
            f"environment: {kin.rank}={rank}, {kin.local_rank}={local_rank} cannot belong to {kin.size}={world_size}"
        )
    return Place(rank, local_rank, world_size)


def _slurm_task(environment: Mapping[str, str]) -> Place | None:
    """The task of a Slurm step that this process is; None where it is none, such as a batch script or a shell."""
    if "SLURM_PROCID" not in environment or _is_reserved(environment.get("SLURM_STEP_ID", "")):
        return None
    # A batch script has SLURM_PROCID=0 and SLURM_NTASKS too; what it lacks is a step. ENVIRONMENT=BATCH is set for it,
    # and handed on to its steps.
    in_step = "SLURM_STEP_ID" in environment or environment["SLURM_PROCID"] != "0"
    if not in_step and environment.get("ENVIRONMENT") == "BATCH":
        return None
    size = next((n for n in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") if n in environment), None)
    if size is None:
        raise ConfigError(
            f"environment: SLURM_PROCID={environment['SLURM_PROCID']} without SLURM_NTASKS: how many tasks there are "
            f"is not known; start it with `srun --ntasks=N`, or {_ALONE}"
        )
    return _numbers(_Kin("Slurm", "SLURM_PROCID", size, "SLURM_LOCALID"), environment)


def _is_reserved(step: str) -> bool:
    return step in ("batch", "extern", "interactive") or (step.isdecimal() and int(step) >= _RESERVED_STEPS)


def _check_alone(environment: Mapping[str, str]) -> None:
    """Whether a process that nobody numbered is surely alone.

    Raises:
        ConfigError: it belongs to a job of several.
    """
    for name in ("SLURM_NTASKS", "SLURM_NPROCS"):
        if environment.get(name, "1").strip() != "1":
            job = environment.get("SLURM_JOB_ID", "of this shell")
            raise ConfigError(
                f"environment: {name}={environment[name]}, but this process is no task of Slurm job {job}, and would "
                "train alone; start it with `srun python -m trainer.train RECIPE`, one node with `duoflow train "
                f"RECIPE`; {_ALONE}"
            )
    for rank, size in (("PMI_RANK", "PMI_SIZE"), ("PMIX_RANK", "PMIX_SIZE"), *((kin.rank, kin.size) for kin in _MPI)):
        found = [f"{name}={environment[name]}" for name in (rank, size) if name in environment]
        if found and environment.get(size, "").strip() != "1":
            raise ConfigError(
                f"environment: {' '.join(found)} says that this is a process of a larger job, but not which one on its "
                f"node; set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process; {_ALONE}"
            )


def _with_address(place: Place, environment: Mapping[str, str]) -> Place:
    if place.world_size == 1:
        return place
    address, port = environment.get("MASTER_ADDR", "").strip(), environment.get("MASTER_PORT", "").strip()
    if not address or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(
            f"environment: {place.world_size} ranks, but MASTER_ADDR={address or '(unset)'} MASTER_PORT="
            f"{port or '(unset)'}; expected the host of rank 0, and a free port of it from 1 to 65535"
        )
    return place._replace(address=address, port=int(port))


def _with_slurm_address(task: Place, environment: Mapping[str, str]) -> Place:
    """A task whose MASTER_ADDR and MASTER_PORT, where they are not set, are those that all tasks of its step work out:
    the first node of its list, where Slurm puts task 0, and a port from the numbers of job and step."""
    if task.world_size == 1:
        return task
    derived = dict(environment)
    if not environment.get("MASTER_ADDR", "").strip():
        lists = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        nodes = next((environment[name] for name in lists if environment.get(name)), None)
        if nodes is not None:
            derived["MASTER_ADDR"] = expand_nodelist(nodes)[0]
    if not environment.get("MASTER_PORT", "").strip():
        job, step = (environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        if job.isdecimal():
            derived["MASTER_PORT"] = str(port_of_job(int(job), int(step) if step.isdecimal() else 0))
    return _with_address(task, derived)


def port_of_job(job: int, step: int) -> int:
    """A port on which the steps of jobs that follow each other do not meet."""
    return _FIRST_PORT + (job * 8 + step) % _PORTS


def leave(code: int) -> NoReturn:
    """End a process that has used process groups, with exit code `code`, after what is registered with atexit.

    The interpreter is not taken down. gloo's threads let go of a collective's tensors a moment after it has returned,
    for which they need the interpreter's lock; a thread that waits for it while the interpreter goes down aborts a
    process whose work is done: "terminate called without an active exception", exit code -6 (pytorch/pytorch#190489).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
