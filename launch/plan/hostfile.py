"""DeepSpeed's hostfile: `HOST slots=N` a line. What its own launcher would misread is refused here, by line.

# rank 0 runs on the first host
node1 slots=8
node2 slots=8
"""

import re
from collections.abc import Sequence
from pathlib import Path

from launch.plan.launch_plan import Node
from launch.plan.words import LaunchFault, is_host

_LINE = re.compile(r"(\S+)\s+slots=([0-9]+)")
_LARGEST = 1024
"""Slots of a machine; more is a slip of the finger."""


def read_hostfile(path: Path) -> tuple[Node, ...]:
    """The nodes of a hostfile, in its order.

    Raises:
        LaunchFault: with the line: it is not `HOST slots=N`, names no host, a host twice, no slots, or another number
            of slots than the line before; or the file is not there or names no host at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise LaunchFault(f"{path}: {reason}; expected a hostfile with a line `HOST slots=N` for each node") from None
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, source: str) -> tuple[Node, ...]:
    """As `read_hostfile`, from the file's text; `source` is what messages call it."""
    nodes: dict[str, Node] = {}
    lines: dict[str, int] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        where = f"{source}:{number}"
        node = _node(where, line)
        if node.name in nodes:
            raise LaunchFault(f"{where}: {node.name} stands already in line {lines[node.name]}; name each host once")
        first = next(iter(nodes.values()), node)
        if node.slots != first.slots:
            raise LaunchFault(
                f"{where}: {node.name} has {node.slots} slots and {first.name} has {first.slots}; DeepSpeed's launcher "
                "numbers local ranks wrongly unless all hosts have the same number: use the smallest on all of them"
            )
        nodes[node.name], lines[node.name] = node, number
    if not nodes:
        raise LaunchFault(f"{source}: names no host; expected a line `HOST slots=N` for each node")
    return tuple(nodes.values())


def write_hostfile(nodes: Sequence[Node]) -> str:
    """The text of a hostfile."""
    return "".join(f"{node.name} slots={node.slots}\n" for node in nodes)


def _node(where: str, line: str) -> Node:
    match = _LINE.fullmatch(line)
    if match is None:
        raise LaunchFault(f"{where}: {line!r}: expected `HOST slots=N`, such as `node1 slots=8`")
    name, slots = match[1], int(match[2]) if len(match[2]) < 9 else _LARGEST + 1
    if not is_host(name):
        raise LaunchFault(
            f"{where}: {name!r} is no host name; expected letters, digits and ._- alone, beginning with a letter or "
            "digit (a user or a port belongs in ~/.ssh/config)"
        )
    if not 1 <= slots <= _LARGEST:
        raise LaunchFault(f"{where}: {name} has slots={match[2]}; expected 1 to {_LARGEST}, one for each GPU")
    return Node(name, slots)
