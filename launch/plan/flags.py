"""DeepSpeed's own launcher flags, as they may follow `--`: those that DuoFlow answers itself are refused by name."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from launch.plan.words import LaunchFault, safe_path, safe_value

_OWNED = {
    "--hostfile": "the hostfile is `--hostfile F`, before the `--`",
    "--include": "hosts and slots are those of the hostfile",
    "--exclude": "hosts and slots are those of the hostfile",
    "--num_nodes": "hosts and slots are those of the hostfile",
    "--num_gpus": "hosts and slots are those of the hostfile",
    "--num_accelerators": "hosts and slots are those of the hostfile",
    "--node_rank": "`duoflow launch hostfile RECIPE --no-ssh` prints a command for each node",
    "--no_ssh": "`duoflow launch hostfile RECIPE --no-ssh` prints a command for each node",
    "--no_ssh_check": "every host is asked before the start",
    "--force_multi": "every hostfile is started through ssh",
    "--launcher": "it is pdsh; for Slurm and Kubernetes there are `duoflow launch slurm` and `duoflow launch k8s`",
    "--launcher_args": "pdsh's options are DuoFlow's; those of ssh go into PDSH_SSH_ARGS_APPEND or ~/.ssh/config",
    "--autotuning": "batch sizes are the recipe's",
    "--module": "the module is trainer.train",
    "--no_python": "the module is trainer.train",
    "--no_local_rank": "the module is trainer.train",
}
_SHORT = {"-H": "--hostfile", "-i": "--include", "-e": "--exclude"}


class Flags(NamedTuple):
    """What the user wants of DeepSpeed's launcher."""

    rest: list[str]
    """Passed on as it is."""
    port: int | None
    address: str | None
    ssh_port: int | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchFault(f"after `--`: {message}; expected flags of the deepspeed launcher, see `deepspeed --help`")


def read_flags(words: Sequence[str]) -> Flags:
    """Sort the flags after `--`.

    Raises:
        LaunchFault: a flag that is not DeepSpeed's, one that DuoFlow answers itself, or a value that cannot pass a
            remote shell.
    """
    for word in words:
        name = _SHORT.get(word[:2], word.partition("=")[0])
        if name in _OWNED:
            raise LaunchFault(f"after `--`: {word}: not taken, because {_OWNED[name]}")
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--master_port", type=int)
    parser.add_argument("--master_addr")
    parser.add_argument("--ssh_port", type=int)
    parser.add_argument("--save_pid", action="store_true")
    parser.add_argument("--bind_cores_to_rank", action="store_true")
    parser.add_argument("--bind_core_list")
    parser.add_argument("--enable_each_rank_log")
    parser.add_argument("--venv_script")
    parser.add_argument("--log_level", choices=("debug", "info", "warning", "error", "critical"))
    parser.add_argument("-q", "--quiet", action="store_true")
    found = vars(parser.parse_args(list(words)))
    for name in ("master_port", "ssh_port"):
        if found[name] is not None and not 1 <= found[name] <= 65535:
            raise LaunchFault(f"after `--`: --{name}={found[name]}: expected a TCP port, 1 to 65535")
    for name, check in (
        ("master_addr", safe_value),
        ("bind_core_list", safe_value),
        ("enable_each_rank_log", safe_path),
        ("venv_script", safe_path),
    ):
        if found[name] is not None:
            check(f"--{name}", found[name])
    if found["log_level"] is None and not found["quiet"]:
        found["log_level"] = "error"  # its default tells every path it takes
    port, address = found.pop("master_port"), found.pop("master_addr")
    return Flags([_flag(name, value) for name, value in found.items() if value], port, address, found["ssh_port"])


def _flag(name: str, value: object) -> str:
    return f"--{name}" if value is True else f"--{name}={value}"
