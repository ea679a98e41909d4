"""Hosts of a hostfile, from the checks before a start to what is left after it: the machine that starts attends them.

Through ssh alone; nothing is installed or written on a host but the run's `config.yaml`.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launch.hosts.ssh import Hosts, look_up
from launch.network import ports_for, reachable_address
from launch.plan.flags import Flags
from launch.plan.forward import ssh_options
from launch.plan.launch_plan import Node
from launch.plan.words import LaunchFault, safe_value


class Offer(NamedTuple):
    """What the hosts together give to a run."""

    address: str
    port: int
    gpus: int
    """Of each host, at least; 0 computes on the CPU."""
    cores: int
    """Of each host, at least."""


@dataclass(frozen=True)
class Cluster:
    """The hosts of one run; what `launch.processes.local.run_launcher` knows as elsewhere."""

    hosts: Hosts
    run: str
    """Absolute path of its directory."""
    mark: str
    """Environment variable that every process of the run carries, with `run` as its value."""

    def hand_over(self, config: bytes) -> list[str]:
        """Give every host the configuration that has not got it, and name those.

        Raises:
            LaunchFault: a host cannot take it.
        """
        answers = self.hosts.ask_all("receive", self.run, stdin=config)
        return [host for host, answer in answers.items() if answer["wrote"]]

    def status(self) -> str | None:
        """The text of `status.json` on the host of rank 0, which wrote it; None if it cannot be had."""
        try:
            return self.hosts.ask(self.hosts.names[0], "report", self.run)["status"]
        except LaunchFault:
            return None

    def stop(self) -> bool:
        answers, _ = self.hosts.ask_each("stop", self.run)
        return any(answer["ranks"] for answer in answers.values())

    def end(self) -> None:
        self.hosts.ask_each("end", self.run, self.mark)

    def kill(self) -> None:
        self.hosts.ask_each("kill", self.run, self.mark)

    def live(self) -> tuple[str, ...]:
        answers, _ = self.hosts.ask_each("report", self.run)
        return tuple(host for host, answer in answers.items() if answer["training"])


def check_tools() -> None:
    """Whether ssh and pdsh are here.

    Raises:
        LaunchFault: one of them is not.
    """
    for tool, package in (("ssh", "openssh-client"), ("pdsh", "pdsh")):
        if shutil.which(tool) is None:
            raise LaunchFault(
                f"{tool} is not installed here: apt-get install {package}, or start each node by hand with the "
                "commands of `duoflow launch hostfile RECIPE --hostfile F --no-ssh`"
            )


def options_of(flags: Flags, environment: Mapping[str, str]) -> tuple[str, ...]:
    """ssh's options: the user's, the port of DeepSpeed's flag, and what keeps a dead link from holding us."""
    port = [] if flags.ssh_port is None else ["-p", str(flags.ssh_port)]
    return (*port, *ssh_options(environment))


def master_address(nodes: Sequence[Node], options: Sequence[str], hostfile: Path, chosen: str | None) -> str:
    """The first host's address as the others see it.

    Args:
        options: of ssh, whose configuration may know a host that no name server does.
        chosen: what the user says that it is.

    Raises:
        LaunchFault: a host is unknown, or the address is.
    """
    known = {node.name: look_up(node.name, options) for node in nodes}
    for name, found in known.items():
        if not found:
            raise LaunchFault(f"{hostfile}: {name}: unknown host; expected a name of /etc/hosts, DNS or ~/.ssh/config")
    first, *others = known.values()
    address = chosen or reachable_address(first, [addresses[0] for addresses in others])
    if address is None:
        raise LaunchFault(
            f"{hostfile}: {nodes[0].name} is this machine, and has no address on the way to the other hosts; name it "
            "with `-- --master_addr=ADDRESS`"
        )
    return safe_value("--master_addr", address)


def greet_all(cluster: Cluster, nodes: Sequence[Node], address: str, port: int | None) -> Offer:
    """Ask every host what it has.

    Args:
        port: what the user chose for rank 0's host; None takes the first of some that is free there.

    Raises:
        LaunchFault: a host cannot be reached, trains this run already, has other devices than the rest or fewer GPUs
            than slots, or the port is taken.
    """
    ports = ports_for(cluster.run) if port is None else [port]
    answers = cluster.hosts.ask_all("greet", cluster.run, *map(str, ports))
    for host, answer in answers.items():
        if answer["training"]:
            raise LaunchFault(
                f"host {host}: processes {', '.join(map(str, answer['training']))} are training in {cluster.run}; "
                "stop them (kill -TERM, and they save) or give this run another run.name"
            )
    twice = _same(answers)
    if twice is not None:
        raise LaunchFault(f"host {twice[1]}: is {twice[0]} under another name; name each host once")
    _check_devices({host: answer["gpus"] for host, answer in answers.items()}, nodes[0].slots)
    free = answers[nodes[0].name]["port"]
    if free is None:
        tried = f"port {port} is taken" if port is not None else f"ports {ports[0]} and {len(ports) - 1} more are taken"
        raise LaunchFault(f"host {nodes[0].name}: {tried}; name a free one with `-- --master_port=PORT`")
    return Offer(
        address=address,
        port=free,
        gpus=min(answer["gpus"] for answer in answers.values()),
        cores=min(answer["cores"] for answer in answers.values()),
    )


def _same(answers: Mapping[str, Mapping]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for host, answer in answers.items():
        if answer["host"] in seen:
            return seen[answer["host"]], host
        seen[answer["host"]] = host
    return None


def _check_devices(gpus: Mapping[str, int], slots: int) -> None:
    if not any(gpus.values()):
        return
    for host, count in gpus.items():
        if count < slots:
            raise LaunchFault(
                f"host {host}: shows {count} GPUs for slots={slots}; lower the slots of all hosts, or set "
                "DS_ACCELERATOR=cpu"
            )
