"""A launch as text that a person reads, or types: nothing is started."""

import shlex
from collections.abc import Mapping, Sequence

from launch.plan.launch_plan import LaunchPlan, NodeCommand, node_commands, typed_commands


def shown_pdsh(
    plan: LaunchPlan, argv: Sequence[str], files: Mapping[str, str], environment: Mapping[str, str], directory: str
) -> str:
    """What a start through pdsh would write and run.

    Args:
        argv: the command of this machine.
        files: path to text.
        environment: variables of that command.
        directory: in which everything runs.
    """
    parts = [f"# {path}\n{text.rstrip()}" for path, text in files.items()]
    parts.append(f"# here: one command, through ssh to every host\n{_line(directory, environment, argv)}")
    parts += [_of_node("which starts", command, directory) for command in node_commands(plan)]
    return "\n\n".join(parts) + "\n"


def shown_typed(plan: LaunchPlan, hostfile: str, directory: str) -> str:
    """A command for each node, to be typed there."""
    commands = typed_commands(plan, hostfile)
    return "\n\n".join(_of_node("type", command, directory) for command in commands) + "\n"


def _of_node(what: str, command: NodeCommand, directory: str) -> str:
    return f"# {what} on {command.node}\n{_line(directory, command.environment, command.argv)}"


def _line(directory: str, environment: Mapping[str, str], argv: Sequence[str]) -> str:
    variables = [f"{name}={value}" for name, value in sorted(environment.items())]
    return f"cd {shlex.quote(directory)} && {shlex.join(['env', *variables, *argv])}"
