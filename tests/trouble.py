"""Runs that get into trouble: a recipe over drawn pictures, ranks that can be stopped and killed, and the places in
which a disk or a control group of memory is small."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest

from launch.processes.memory import memory_group
from launch.processes.ranks import read_records
from tests.distributed.forked_ranks import Forked, fork_command
from tests.distributed.launch import ROOT, free_port
from tests.models import FUSION, SCRATCH
from tests.runs import LeftOver, write_recipe, write_shards
from trainer.run_directory import RunDirectory

WAIT_SECONDS = 300
NEVER_BETTER = "optim.lr=1e-30"


class Desk:
    """A recipe over drawn pictures, and what happens to its runs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = write_shards(home)
        self.recipe = write_recipe(home / "tiny.yaml", self.data)
        self.environment = {
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }

    def rank(self, *overrides: str, **environment: str) -> Forked:
        """A rank, as `python -m trainer.train` starts it."""
        return Forked("trainer.train", [str(self.recipe), *overrides], [self.environment | environment])

    def trains(self, *overrides: str) -> str:
        """What a run alone says until it ends, however."""
        return self.rank(*overrides).wait(WAIT_SECONDS).stdout

    def says(self, *words: str) -> str:
        return fork_command(words, self.environment, self.home).stdout

    def shell(self, script: str) -> str:
        """What a script says in which "$@" is `duoflow`."""
        done = subprocess.run(
            ["sh", "-c", script, "sh", sys.executable, "-m", "trainer.cli"],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        return done.stdout + done.stderr

    def directory(self, name: str) -> RunDirectory:
        return RunDirectory(self.home / "runs" / name)

    @cached_property
    def trained(self) -> LeftOver:
        """A run that has ended, the best of whose checkpoints is not the last; others begin with a copy of it."""
        self.trains("run.name=trained", NEVER_BETTER)
        return LeftOver(self.directory("trained").path)

    def copy(self, name: str) -> RunDirectory:
        """A run of another name that is where the trained one is."""
        shutil.copytree(self.trained.path, self.directory(name).path, symlinks=True)
        return self.directory(name)


class Ranks:
    """Two ranks in the middle of training."""

    def __init__(self, desk: Desk, name: str, *overrides: str) -> None:
        port, run = free_port(), desk.directory(name)
        long = (f"run.name={name}", "limits.epochs=100000", "data.val=null", *overrides)
        self.both = [desk.rank(*long, **place_of(number, 2, port)) for number in (0, 1)]
        wait_for(run.metrics.exists)
        self.pids = {record.rank: record.process.pid for record in read_records(run.ranks)}

    def fail(self) -> str:
        """What rank 0 has said, when it has given up by itself."""
        first, second = self.both
        said = first.wait(WAIT_SECONDS).stdout
        if second.is_running:
            second.send_signal(signal.SIGKILL)
        return said + second.wait(WAIT_SECONDS).stdout


def tight_recipe(desk: Desk, name: str) -> Path:
    """The attention of its first layer alone takes more than two GiB."""
    scratch = SCRATCH | {"image_size": 400, "vision_layers": 1, "text_layers": 1}
    model = {"scratch": scratch, "second_stream": "none", "fusion": FUSION, "freeze": []}
    batch = {"visits": 32, "micro_visits": 32}
    return write_recipe(desk.home / f"{name}.yaml", desk.data, model=model, batch=batch)


def place_of(rank: int, size: int, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """The environment of a rank that is started by hand."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": address}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def on_a_disk(desk: Desk, options: str, script: str) -> str:
    """In a place of mounts of its own, /mnt is a small disk."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    allowed = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False)
    if allowed.returncode != 0:
        pytest.skip("nothing can be mounted here")
    return desk.shell(f"exec unshare --mount sh -c 'mount -t tmpfs {options} none /mnt; {script}' sh \"$@\"")


def within_memory(desk: Desk, limit: int, recipe: Path) -> str:
    """What a run says in a control group that holds so many bytes."""
    group = memory_group()
    if group is None:
        pytest.skip("there is no control group of memory here")
    small = group / recipe.stem
    try:
        small.mkdir(exist_ok=True)
        limits = [small / name for name in ("memory.limit_in_bytes", "memory.max") if (small / name).exists()]
        limits[0].write_text(str(limit))
    except (OSError, IndexError) as error:
        pytest.skip(f"no control group of memory can be limited here ({error})")
    try:
        return desk.shell(f'echo $$ > {small}/cgroup.procs; exec "$@" train {recipe}')
    finally:
        wait_for(lambda: not (small / "cgroup.procs").read_text())
        small.rmdir()
