"""`duoflow launch hostfile|slurm|k8s`: arguments in; what they ask for is in trainer/commands/launch.py."""

import argparse
from pathlib import Path
from typing import Any


def add_hostfile_option(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """Add `--hostfile`."""
    parser.add_argument(
        "--hostfile",
        metavar="F",
        type=Path,
        required=required,
        help="train on the hosts of this file, a line `HOST slots=N` each, reached by ssh; flags of the deepspeed "
        "launcher may follow after --",
    )


def add_launch_parser(verbs: Any) -> None:
    """Add the `launch` verb; its namespace carries `handler`: namespace -> exit code."""
    launch = verbs.add_parser(
        "launch",
        description="Render the start of a recipe for a kind of cluster, and start it.",
        epilog="duoflow launch slurm recipes/gqa_blip_base.yaml --nodes 2 --dry-run",
    )
    kinds = launch.add_subparsers(metavar="KIND", required=True)
    _add_hostfile(kinds)
    _add_slurm(kinds)
    _add_kubernetes(kinds)


def _add_hostfile(kinds: Any) -> None:
    example = "duoflow launch hostfile recipes/gqa_blip_base.yaml --hostfile hosts --dry-run"
    parser = _kind(kinds, "hostfile", "hosts reached by ssh", "As duoflow train RECIPE --hostfile F.", example)
    add_hostfile_option(parser, required=True)
    parser.add_argument(
        "--no-ssh", action="store_true", help="write the run's files and print a command to type on each node"
    )
    parser.add_argument("--fresh", action="store_true", help="set an existing run of this name aside and start over")
    _add_dry_run(parser)
    parser.set_defaults(handler=_hostfile)


def _add_slurm(kinds: Any) -> None:
    example = "duoflow launch slurm recipes/gqa_blip_base.yaml --nodes 2 --gpus-per-node 4 --dry-run"
    description = "Fill launch/slurm.sbatch in for a recipe, and submit it."
    parser = _kind(kinds, "slurm", "submit to Slurm", description, example)
    _add_size(parser)
    parser.add_argument("--time", metavar="T", help="time limit, such as 12:00:00 or 2-00:00:00 (default: 24:00:00)")
    parser.add_argument("--partition", metavar="P", help="where the job waits")
    parser.add_argument(
        "--variant", choices=("srun", "hostfile"), default="srun", help="what starts the nodes: srun, or pdsh and ssh"
    )
    _add_dry_run(parser)
    parser.set_defaults(handler=_slurm)


def _add_kubernetes(kinds: Any) -> None:
    example = "duoflow launch k8s recipes/gqa_blip_base.yaml --nodes 2 --gpus-per-node 4"
    parser = _kind(kinds, "k8s", "print manifests", "Print a job's manifests, for `kubectl apply -f -`.", example)
    _add_size(parser)
    parser.add_argument("--image", metavar="I", default="duoflow:latest", help="container image that has DuoFlow")
    parser.add_argument("--namespace", metavar="NS", help="namespace; without it kubectl's own")
    parser.add_argument("--claim", metavar="C", default="duoflow", help="PersistentVolumeClaim with data and runs")
    parser.add_argument("--volume", metavar="DIR", default="/workspace", help="where it is mounted; paths begin here")
    parser.add_argument(
        "--variant",
        choices=("job", "trainjob"),
        default="job",
        help="an Indexed Job, which needs no operator, or a TrainJob of Kubeflow Trainer",
    )
    _add_dry_run(parser)
    parser.set_defaults(handler=_kubernetes)


def _kind(kinds: Any, name: str, help_line: str, description: str, example: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=help_line, description=description, epilog=example)
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file, or the config.yaml of a run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values to change, such as optim.lr=3e-5")
    return parser


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="name of the job; without it the run's")
    parser.add_argument("--nodes", metavar="N", type=int, default=2, help="machines")
    parser.add_argument(
        "--gpus-per-node", metavar="N", type=int, default=4, help="GPUs, a rank each; 0 is a rank on the CPU"
    )


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print what would be run; start and write nothing")


def _hostfile(arguments: argparse.Namespace) -> int:
    from trainer.commands.launch import launch_over_hosts

    return launch_over_hosts(
        arguments.recipe,
        arguments.overrides,
        hostfile=arguments.hostfile,
        flags=arguments.launcher_flags,
        no_ssh=arguments.no_ssh,
        dry_run=arguments.dry_run,
        fresh=arguments.fresh,
    )


def _slurm(arguments: argparse.Namespace) -> int:
    from trainer.commands.launch import launch_on_slurm

    return launch_on_slurm(
        arguments.recipe,
        arguments.overrides,
        name=arguments.name,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        time=arguments.time,
        partition=arguments.partition,
        variant=arguments.variant,
        dry_run=arguments.dry_run,
    )


def _kubernetes(arguments: argparse.Namespace) -> int:
    from trainer.commands.launch import print_manifests

    return print_manifests(
        arguments.recipe,
        arguments.overrides,
        name=arguments.name,
        image=arguments.image,
        claim=arguments.claim,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        namespace=arguments.namespace,
        volume=arguments.volume,
        variant=arguments.variant,
    )
