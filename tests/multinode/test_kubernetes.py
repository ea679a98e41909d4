"""The command of a pod, with what its manifest gives it, on two hosts that are called as pods are."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.training_runs import DROPOUT
from tests.multinode.lab import SYSTEM_PATH, Host
from tests.multinode.ranks import LOGIN
from tests.multinode.runs import Project, Run, assert_same_bits

TRAINED_SECONDS = 300.0
PLACE = Path("/run/pod")
"""On the host's own tmpfs: the upper side of an overlay cannot lie on another overlay, as in a container."""
MOUNT = """
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1,workdir=$2" /etc && mount --bind "$3" /etc/hosts || exit 1
shift 3
exec "$@"
"""
"""A pod's own /etc, in which its ConfigMap is mounted; nobody else sees it."""


def _manifests(host: Host, project: Project) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "trainer.cli", "launch", "k8s", str(project.recipe)),
        *("run.name=pods", "engine.start_timeout_seconds=120", *DROPOUT),
        *("--nodes=2", "--gpus-per-node=0", "--image=registry.org/duoflow:1", f"--volume={project.directory}"),
    ]
    done = host.run(command, environment=LOGIN, cwd=project.directory)
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    return {item["kind"]: item for item in items}


def _expanded(words: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """As the kubelet does: $(NAME) is a variable, and $$ a dollar."""
    pattern = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
    return [pattern.sub(lambda found: variables[found[1]] if found[1] else "$", word) for word in words]


def _output(project: Project, index: int) -> Path:
    return project.directory / f"pod.{index}.txt"


def _pod(host: Host, index: int, kinds: Mapping[str, Any], project: Project) -> subprocess.Popen:
    job, config = kinds["Job"], kinds["ConfigMap"]["data"]["config.yaml"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "config")
    upper = PLACE / "upper"
    inside = upper / Path(mount["mountPath"]).relative_to("/etc")
    host.command("mkdir", "--parents", str(inside), str(PLACE / "work"))
    host.path(inside / "config.yaml").write_text(config)
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    given |= {"JOB_COMPLETION_INDEX": str(index)}
    # Of the image: its Python is called python, and has DuoFlow.
    image = {"PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}", "PYTHONPATH": LOGIN["PYTHONPATH"]}
    hosts = str(host.directory / "hosts")
    cores = sorted(os.sched_getaffinity(0))
    one_core = ["taskset", "--cpu-list", str(cores[index % len(cores)])]  # sums depend on the number of threads
    command = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", str(upper), str(PLACE / "work"), hosts, *one_core]
    return host.popen(
        [*command, *_expanded(container["command"], given)],
        environment=image | given,
        cwd=Path(container["workingDir"]),
        stdout=_output(project, index).open("w"),
        stderr=subprocess.STDOUT,
    )


def test_pods_train_with_what_their_manifest_gives_them(two: tuple[Host, Host], project: Project, on_one_host: Run):
    if "overlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")
    kinds = _manifests(two[0], project)
    service = kinds["Service"]["metadata"]["name"]
    pods = {f"{kinds['Job']['metadata']['name']}-{index}": host for index, host in enumerate(two)}
    names = {f"{pod}.{service}": host.address for pod, host in pods.items()}
    started = []
    try:
        for index, (pod, host) in enumerate(pods.items()):
            host.names |= names | {pod: host.address}
            host.command("hostname", pod)
            host.lab.write_names()
            started.append(_pod(host, index, kinds, project))
        codes = [process.wait(TRAINED_SECONDS) for process in started]
        said = "".join(_output(project, index).read_text() for index in range(2))
        assert codes == [0, 0], said
    finally:
        for host, process in zip(two, started, strict=False):
            host.end(process)
        for host in two:
            host.names = {}
            host.command("hostname", host.name)
            host.lab.write_names()
    assert_same_bits(project.run("pods"), on_one_host)
    environment = (project.run("pods").path / "environment.json").read_text()
    assert all(pod in environment for pod in pods)
