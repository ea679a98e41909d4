"""The launch plan: nodes, address, port and environment become one command per node. Pure; everything renders it.

Ranks are numbered node by node, in the order of the nodes. What travels to a rank is the path of a resolved
configuration, never a value of it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

RUNNER = "deepspeed.launcher.runner"
"""Starts every node's part, through pdsh."""
NODE_LAUNCHER = "deepspeed.launcher.launch"
"""Starts the ranks of one node."""


class Node(NamedTuple):
    """A machine, and the ranks that it gets."""

    name: str
    slots: int
    """Ranks, each with a device of its own."""
    devices: tuple[str, ...] = ()
    """Numbers of its GPUs, one per rank; empty takes the first ones, or none on a CPU."""


class NodeCommand(NamedTuple):
    """What starts the ranks of one node, on that node."""

    node: str
    argv: list[str]
    environment: dict[str, str]
    """Variables to set in addition to what the node has."""


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Which ranks run where, and how they find each other."""

    nodes: tuple[Node, ...]
    """Rank 0 is on the first. All have the same number of slots."""
    address: str
    """Of the first node, as the others see it."""
    port: int
    """TCP port of the rendezvous on the first node."""
    module: str
    arguments: tuple[str, ...]
    """Of the module: the path of the configuration."""
    python: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that every rank gets."""

    def __post_init__(self) -> None:
        assert self.nodes, "a plan needs a node"
        assert len({node.slots for node in self.nodes}) == 1, f"{self.nodes}: local ranks need equal slots"
        assert all(not node.devices or len(node.devices) == node.slots for node in self.nodes), self.nodes

    @property
    def slots(self) -> int:
        """Ranks of each node."""
        return self.nodes[0].slots

    @property
    def world_size(self) -> int:
        return self.slots * len(self.nodes)


def node_commands(plan: LaunchPlan) -> list[NodeCommand]:
    """One command per node, for whatever starts exactly one process on each: a pod, or a hand."""
    return [NodeCommand(node.name, _node_argv(plan, rank), dict(plan.environment)) for rank, node in _ranked(plan)]


def typed_commands(plan: LaunchPlan, hostfile: str) -> list[NodeCommand]:
    """One `deepspeed --no_ssh` per node, to be typed there. `hostfile` lies on every node under the same path."""
    return [
        NodeCommand(
            node.name,
            [
                *(plan.python, "-m", RUNNER, f"--hostfile={hostfile}", "--no_ssh", f"--node_rank={rank}"),
                *_rendezvous(plan),
                *_module(plan),
            ],
            dict(plan.environment),
        )
        for rank, node in _ranked(plan)
    ]


def pdsh_argv(plan: LaunchPlan, hostfile: str, flags: Sequence[str] = ()) -> list[str]:
    """The one command that starts every node through pdsh, from any machine that reaches them by ssh.

    Args:
        hostfile: the plan's nodes in DeepSpeed's format.
        flags: more of DeepSpeed's own flags.
    """
    # One host would otherwise be taken for this machine, whatever its name is. The runner's own check of ssh looks at
    # the first host alone, without a time limit.
    where = [f"--hostfile={hostfile}", "--force_multi", "--no_ssh_check", "--launcher=pdsh"]
    return [plan.python, "-m", RUNNER, *where, *_rendezvous(plan), *flags, *_module(plan)]


def local_argv(plan: LaunchPlan) -> list[str]:
    """The command that starts a plan of one node on this machine, where the caller says how ranks have ended.

    DeepSpeed's runner comes to the same command, after seconds of imports.
    """
    assert len(plan.nodes) == 1, plan.nodes
    return _node_argv(plan, 0, log_level="critical")


def world_info(nodes: Sequence[Node]) -> str:
    """Nodes and the devices of their ranks as DeepSpeed's node launcher reads them: base64 of JSON."""
    slots = {node.name: [int(device) for device in node.devices or range(node.slots)] for node in nodes}
    return base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()


def _ranked(plan: LaunchPlan) -> list[tuple[int, Node]]:
    return list(enumerate(plan.nodes))


def _node_argv(plan: LaunchPlan, rank: int, log_level: str = "error") -> list[str]:
    where = [f"--world_info={world_info(plan.nodes)}", f"--node_rank={rank}"]
    options = [*where, *_rendezvous(plan), f"--log_level={log_level}"]
    return [plan.python, "-u", "-m", NODE_LAUNCHER, *options, *_module(plan)]


def _rendezvous(plan: LaunchPlan) -> list[str]:
    return [f"--master_addr={plan.address}", f"--master_port={plan.port}"]


def _module(plan: LaunchPlan) -> list[str]:
    return ["--module", plan.module, *plan.arguments]
