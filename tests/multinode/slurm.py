"""A Slurm cluster on hosts of a lab: munged and slurmd on each, slurmctld on the first, GPUs that are none."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.multinode.lab import POLL_SECONDS, SYSTEM_PATH, UP_SECONDS, Host
from tests.multinode.ranks import LOGIN

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch")
CPUS_PER_NODE = 32
GPU_FILES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""A device that is there for each GPU of a node that is none."""
SETTLE_SECONDS = 300.0
"""For a job to get from one state to the next."""


def what_is_missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
    return f"no {', '.join(missing)}: apt-get install slurm-wlm munge" if missing else None


class Slurm:
    """The cluster; jobs are submitted from the first host."""

    def __init__(self, hosts: Sequence[Host], directory: Path) -> None:
        self._hosts, self._directory = hosts, directory
        self._stack = contextlib.ExitStack()
        self.environment: Mapping[str, str] = LOGIN | {"SLURM_CONF": str(directory / "slurm.conf")}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._write_configuration()
            first, key = self._hosts[0], self._directory / "munge.key"
            for host in self._hosts:
                host.command("mkdir", "--mode=755", "--parents", "/run/munge")
                files = [f"--{name}-file=/run/munge/{name}" for name in ("pid", "log", "seed")]
                self._serve(stack, host, "munged", "--foreground", "--force", f"--key-file={key}", *files)
            for host in self._hosts:
                _wait(lambda host=host: host.run(["munge", "--no-input"]).returncode == 0, "munged", UP_SECONDS)
            self._serve(stack, first, "slurmctld", "-D")
            for host in self._hosts:
                self._serve(stack, host, "slurmd", "-D", "-N", host.name)
            idle = len(self._hosts)
            _wait(lambda: self("sinfo", "--noheader", "--Node", "--format=%t").split().count("idle") == idle, "slurmd")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        for host in self._hosts:  # without its daemons a job goes on
            for process in host.matching("trainer.train"):
                os.kill(process.pid, signal.SIGKILL)

    def __call__(self, *argv: str | Path) -> str:
        """Run one of Slurm's commands; what it printed."""
        done = self.run(*argv)
        assert done.returncode == 0, (argv, done.stdout, done.stderr, self.log)
        return done.stdout

    def run(self, *argv: str | Path, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the host that jobs are submitted from."""
        return self._hosts[0].run(list(map(str, argv)), environment=self.environment, timeout_seconds=seconds)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job."""
        words = self("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, *states: str, restarts: int = 0) -> None:
        """Until a job is in one of these states, having been started again so often."""

        def there() -> bool:
            job = self.job(number)
            return job["JobState"] in states and int(job["Restarts"]) >= restarts

        _wait(there, f"job {number} {' or '.join(states)}", SETTLE_SECONDS)

    @property
    def log(self) -> str:
        """What the daemons said last."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._directory.glob("*.log")))

    def _serve(self, stack: contextlib.ExitStack, host: Host, *argv: str) -> None:
        log = stack.enter_context((self._directory / f"{argv[0]}.{host.name}.log").open("w"))
        environment = {"SLURM_CONF": self.environment["SLURM_CONF"]}
        process = host.popen(argv, environment=environment, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(host.end, process)

    def _write_configuration(self) -> None:
        self._directory.mkdir()
        (self._directory / "state").mkdir()
        names = ",".join(host.name for host in self._hosts)
        # Ranks that nobody attends stay behind a requeue where processes are not tracked; linuxproc needs no cgroups.
        (self._directory / "slurm.conf").write_text(
            f"""ClusterName=lab
SlurmctldHost={self._hosts[0].name}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={self._directory}/state
SlurmdSpoolDir=/run/slurmd.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=30
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={names} CPUs={CPUS_PER_NODE} Gres=gpu:{len(GPU_FILES)} State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )
        gpus = "".join(f"NodeName={names} Name=gpu File={file}\n" for file in GPU_FILES)
        (self._directory / "gres.conf").write_text(gpus)
        key = self._directory / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)


def _wait(there, what: str, seconds: float = UP_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(10 * POLL_SECONDS)
