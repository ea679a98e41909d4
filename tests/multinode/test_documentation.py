"""The commands of docs/cluster.md, word for word, on hosts that are called as the page calls them.

What the page names and no lab has is small here: the recipe of that name, and the number of devices on a host. kubectl
is one that takes manifests and knows what it was given.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.multinode.lab import ROOT, Host
from tests.multinode.ranks import DONE, LOGIN
from tests.multinode.runs import ENGINE, Project, Run
from tests.multinode.slurm import Slurm, what_is_missing
from tests.runs import write_recipe

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
RECIPE = "recipes/gqa_blip_base.yaml"
COMMAND_SECONDS = 480.0
_FENCED = re.compile(r"^```(?:bash)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
KUBECTL = """
import json, pathlib, sys
known = pathlib.Path(__file__).with_name("applied.json")
verb, *words = sys.argv[1:]
if verb == "apply":
    assert words == ["-f", "-"], words
    known.write_text(sys.stdin.read())
items = json.loads(known.read_text())["items"]
there = {f"{item['kind']}/{item['metadata']['name']}".lower() for item in items}
missing = [word for word in words if "/" in word and word not in there]
sys.exit(f"not found: {missing}, of {sorted(there)}" if missing else 0)
"""


def blocks(section: str) -> list[str]:
    """The fenced blocks of a section of the page."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return _FENCED.findall(text)


def commands(block: str) -> list[str]:
    """Its commands, without what is said of them."""
    return [line for line in block.splitlines() if line and not line.startswith("#")]


class Desk:
    """A directory as the page's reader has one, on the disk that the hosts share."""

    def __init__(self, host: Host, project: Project) -> None:
        self.host, self.path = host, project.directory / "desk"
        self._tools = self.path / "bin"
        (self.path / "recipes").mkdir(parents=True)
        self._tools.mkdir()
        write_recipe(
            self.path / RECIPE,
            project.data,
            run={"directory": "runs", "seed": 3},
            batch={"visits": 16, "micro_visits": 1},
            limits={"epochs": 1},
            engine=ENGINE | {"start_timeout_seconds": 120},
        )
        self._tool("duoflow", f'exec {shlex.quote(sys.executable)} -m trainer.cli "$@"')
        self._tool("apt-get", 'shift; exec dpkg --status "$@"')  # these hosts are of one machine, which has them
        self._tool("kubectl", f'exec {shlex.quote(sys.executable)} -S {self._tools / "kubectl.py"} "$@"')
        (self._tools / "kubectl.py").write_text(KUBECTL)
        self.environment = LOGIN | {"PATH": f"{self._tools}:{LOGIN['PATH']}", "OMP_THREAD_LIMIT": "1"}

    def _tool(self, name: str, line: str) -> None:
        path = self._tools / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def type(
        self, line: str, *, host: Host | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What a line leads to that has to succeed."""
        done = (host or self.host).run(
            ["bash", "-o", "pipefail", "-c", line],
            environment=self.environment | dict(environment or {}),
            cwd=self.path,
            timeout_seconds=COMMAND_SECONDS,
        )
        assert done.returncode == DONE, (line, done.stdout, done.stderr)
        return done

    @property
    def run(self) -> Run:
        return Run(self.path / "runs" / Path(RECIPE).stem)

    def clear(self, name: str) -> None:
        """Put the run aside, so that the next command begins its own."""
        (self.path / "runs").rename(self.path / f"runs.{name}")


@pytest.fixture(scope="module")
def desk(two: tuple[Host, Host], project: Project) -> Desk:
    return Desk(two[0], project)


@pytest.fixture(scope="module")
def hostfile(desk: Desk) -> Path:
    """The page's own, with fewer slots."""
    text, _ = blocks("ssh and a hostfile")
    assert text.startswith("# hosts\n")
    path = desk.path / "hosts"
    path.write_text(re.sub(r"slots=\d+", "slots=1", text))
    return path


@pytest.mark.usefixtures("hostfile")
def test_over_ssh(desk: Desk):
    *before, train = commands(blocks("ssh and a hostfile")[1])
    assert [line.split()[0] for line in before] == ["apt-get", "ssh", "duoflow"]
    for line in before:
        desk.type(line)
    assert not (desk.path / "runs").exists(), "nothing was started"
    desk.type(train)
    assert (desk.run.status["state"], desk.run.status["exit_code"]) == ("done", DONE)
    steps = list(desk.run.losses)
    again = desk.type(train)
    assert list(desk.run.losses) == steps, again.stderr
    desk.clear("ssh")


@pytest.mark.usefixtures("hostfile")
def test_without_ssh(desk: Desk, two: tuple[Host, Host]):
    (shown,) = re.findall(r"`(duoflow launch hostfile RECIPE [^`]*--no-ssh)`", PAGE)
    said = desk.type(shown.replace("RECIPE", RECIPE)).stdout
    typed = [line for line in said.splitlines() if "--node_rank" in line]
    assert len(typed) == len(two), said
    started = [
        host.popen(["bash", "-c", line], environment=desk.environment, cwd=desk.path)
        for host, line in zip(two, typed, strict=True)
    ]
    try:
        codes = [process.wait(COMMAND_SECONDS) for process in started]
    finally:
        for host, process in zip(two, started, strict=True):
            host.end(process)
    assert codes == [DONE, DONE]
    assert desk.run.status["state"] == "done"
    desk.clear("no_ssh")


def test_on_kubernetes(desk: Desk):
    for line in commands(blocks("Kubernetes")[0]):
        desk.type(line)


@pytest.fixture
def slurm(four: tuple[Host, ...], desk: Desk) -> Iterator[Slurm]:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    with Slurm(four, desk.path / "slurm") as cluster:
        yield cluster


def test_on_slurm(desk: Desk, slurm: Slurm):
    """Hosts of one task take the script's commands; `duoflow launch slurm` asks for what its command says."""
    script = (ROOT / "launch/slurm.sbatch").read_text()
    for name in ("ntasks-per-node", "gpus-per-node", "cpus-per-task"):
        script, replaced = re.subn(rf"(?<=^#SBATCH --{name}=)\d+$", "1", script, flags=re.MULTILINE)
        assert replaced == 1, name
    (desk.path / "launch").mkdir()
    (desk.path / "launch/slurm.sbatch").write_text(script)
    given = slurm.environment | desk.environment | {"DUOFLOW_PYTHON": sys.executable}
    given["SLURM_CONF"] = slurm.environment["SLURM_CONF"]
    *submissions, shown, launched = commands(blocks("Slurm")[0])
    assert [line.split()[0] for line in submissions] == ["sbatch", "sbatch"]
    for number, line in enumerate(submissions):
        _finish(slurm, desk.type(line, environment=given).stdout)
        assert desk.run.status["state"] == "done"
        desk.clear(f"slurm{number}")
    dry = desk.type(shown, environment=given).stdout
    assert not (desk.path / "runs").exists(), "nothing was started"
    assert dry.startswith("#!/bin/bash\n"), "the script, and nothing else"
    _finish(slurm, desk.type(launched, environment=given).stdout)
    assert desk.run.status["state"] == "done"
    desk.clear("launched")


def _finish(slurm: Slurm, said: str) -> None:
    (job,) = re.findall(r"\b\d+\b", said)
    slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    found = slurm.job(job)
    assert found["JobState"] == "COMPLETED", Path(found["StdOut"]).read_text() + slurm.log


def test_the_page_has_no_other_commands():
    sections = ("ssh and a hostfile", "Slurm", "Kubernetes")
    assert sum(len(blocks(section)) for section in sections) == len(_FENCED.findall(PAGE)) == len(sections) + 1
