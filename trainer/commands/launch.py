"""Training beyond this machine: over the hosts of a hostfile, and what Slurm and Kubernetes are given."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from launch.hosts.cluster import Cluster, Offer, check_tools, greet_all, master_address, options_of
from launch.hosts.ssh import Hosts
from launch.network import ports_for
from launch.plan.flags import Flags, read_flags
from launch.plan.forward import environment_file, forwarded, runner_environment
from launch.plan.hostfile import read_hostfile, write_hostfile
from launch.plan.launch_plan import LaunchPlan, Node, pdsh_argv
from launch.plan.words import LaunchFault, safe_path
from launch.processes.local import Outcome, count_gpus, launcher_environment, run_launcher
from launch.render.kubernetes import KubernetesOptions, manifests
from launch.render.show import shown_pdsh, shown_typed
from launch.render.slurm import SlurmOptions, sbatch_script
from shards.atomic import write_atomically
from shards.errors import ConfigError, UserError
from shards.progress import say
from trainer.commands.restarts import nodes_that_answer
from trainer.commands.start import (
    TRAINING_MODULE,
    Launch,
    Preparation,
    check_previous,
    import_from,
    start_training,
    write_start,
)
from trainer.config import RunConfig, dump_config, load_config
from trainer.config.schema import check_world_size
from trainer.exit_codes import DONE, USER_MISTAKE
from trainer.run_directory import OCCUPIED, RunDirectory
from trainer.training.preflight import check_inputs, past_of


class Written(NamedTuple):
    """The files of a launch over hosts, absolute: DeepSpeed's runner reads them on this machine."""

    hostfile: Path
    environment: Path

    @classmethod
    def of(cls, run: RunDirectory) -> "Written":
        directory = run.path.resolve() / "launch"
        return cls(directory / "hostfile", directory / "environment")


class Agreed(NamedTuple):
    """A launch over hosts after every check."""

    plan: LaunchPlan
    cluster: Cluster
    flags: Flags


def over_hosts(hostfile: Path, words: Sequence[str], *, min_nodes: int | None = None) -> Preparation:
    """How a run starts on the hosts of a hostfile.

    Args:
        words: DeepSpeed's own launcher flags.
        min_nodes: with how many of the hosts a run may be started again; None is all of them.
    """

    def prepare(config: RunConfig, run: RunDirectory, fresh: bool) -> Launch:
        checked = [_check_hosts(config, run, hostfile, words, fresh=fresh)]

        def launch() -> Outcome:
            # A start after a fault finds the hosts as they are then.
            agreed = checked.pop() if checked else _check_hosts(config, run, hostfile, words, min_nodes=min_nodes)
            return _launch(agreed, config, run)

        return launch

    return prepare


def launch_over_hosts(
    recipe: Path,
    overrides: Sequence[str],
    *,
    hostfile: Path,
    flags: Sequence[str],
    no_ssh: bool,
    dry_run: bool,
    fresh: bool,
) -> int:
    """Start a recipe on the hosts of a hostfile, or print how.

    Args:
        flags: DeepSpeed's own launcher flags.
        no_ssh: print a command for each node, after the run's files were written.
        dry_run: write and start nothing; with ssh, the hosts are asked as for a start.

    Raises:
        UserError: what keeps the run from starting.
    """
    if not (no_ssh or dry_run):
        return start_training(recipe, overrides, fresh=fresh, prepare=over_hosts(hostfile, flags))
    config = load_config(recipe, overrides)
    run = RunDirectory.of(config)
    _, finished = check_previous(run, config, fresh=fresh)
    if finished is not None:
        say(finished, error=True)
        return DONE
    if not no_ssh:
        say(_shown(_check_hosts(config, run, hostfile, flags, fresh=fresh), run).rstrip("\n"))
        return DONE
    plan = _plan_without_ssh(config, run, hostfile, flags, fresh=fresh)
    files = Written.of(run)
    if not dry_run:
        with contextlib.ExitStack() as locks:
            write_start(config, run, locks, fresh=fresh)
        write_atomically(files.hostfile, write_hostfile(plan.nodes).encode())
    say(shown_typed(plan, str(files.hostfile), os.getcwd()).rstrip("\n"))
    return DONE


def launch_on_slurm(
    recipe: Path, overrides: Sequence[str], *, dry_run: bool, name: str | None, **options: object
) -> int:
    """Submit a recipe to Slurm, or print the script.

    Args:
        options: of `SlurmOptions`.

    Raises:
        UserError: the recipe or an option is wrong, or there is no Slurm here.
    """
    config = load_config(recipe, overrides)
    with _faults():
        chosen = SlurmOptions(name=name or str(config.run.name), **options)
        script = sbatch_script(chosen, [str(recipe), *overrides], python=sys.executable)
    check_world_size(config, chosen.nodes * max(1, chosen.gpus_per_node))
    if dry_run:
        say(script.rstrip("\n"))
        return DONE
    try:
        return subprocess.run(["sbatch"], input=script, text=True, check=False).returncode
    except FileNotFoundError:
        raise UserError("sbatch is not installed here; run this on a login node of the cluster") from None


def print_manifests(recipe: Path, overrides: Sequence[str], *, name: str | None, **options: object) -> int:
    """Print a recipe's manifests for Kubernetes, and nothing else, on stdout.

    Args:
        options: of `KubernetesOptions`.

    Raises:
        UserError: the recipe or an option is wrong.
    """
    config = load_config(recipe, overrides)
    with _faults():
        chosen = KubernetesOptions(name=name or _label(str(config.run.name)), **options)
        text = manifests(chosen, dump_config(config), str(RunDirectory.of(config).path))
    check_world_size(config, chosen.nodes * max(1, chosen.gpus_per_node))
    say(text.rstrip("\n"))
    return DONE


def _label(name: str) -> str:
    """A run's name as Kubernetes names things: gqa_blip_base becomes gqa-blip-base."""
    return name.lower().replace("_", "-").replace(".", "-")


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """A launch's faults are the user's: one line, exit code 2."""
    try:
        yield
    except LaunchFault as fault:
        raise ConfigError(str(fault)) from None


def _check_hosts(
    config: RunConfig,
    run: RunDirectory,
    hostfile: Path,
    words: Sequence[str],
    *,
    fresh: bool = False,
    min_nodes: int | None = None,
) -> Agreed:
    """Everything that a start over hosts needs; cheap checks first, and nothing is written.

    Args:
        min_nodes: leave hosts out that do not answer, as long as so many are left.
    """
    with _faults():
        flags = read_flags(words)
        nodes = read_hostfile(hostfile)
        _check_paths(run)
        _check_share(config, nodes)
        check_tools()
        if min_nodes is not None:
            nodes = nodes_that_answer(nodes, lambda some: cluster_of(some, run, flags), min_nodes, config)
        cluster = cluster_of(nodes, run, flags)
        address = master_address(nodes, cluster.hosts.options, hostfile, flags.address)
        offer = greet_all(cluster, nodes, address, flags.port)
        plan = plan_over(nodes, offer, run, os.environ)
    _check_inputs(config, run, gpus=offer.gpus, fresh=fresh)
    return Agreed(plan, cluster, flags)


def _check_inputs(config: RunConfig, run: RunDirectory, *, gpus: int, fresh: bool) -> None:
    """By what this machine sees. Whether checkpoints are gone is judged where rank 0 is, whose disk may be another."""
    check_inputs(config, device_type="cuda" if gpus else "cpu", past=None if fresh else past_of(run))


def _plan_without_ssh(
    config: RunConfig, run: RunDirectory, hostfile: Path, words: Sequence[str], *, fresh: bool
) -> LaunchPlan:
    """The plan where nobody asks the hosts: they are taken to be like this machine."""
    with _faults():
        flags = read_flags(words)
        nodes = read_hostfile(hostfile)
        _check_paths(run)
        _check_share(config, nodes)
        address = master_address(nodes, options_of(flags, os.environ), hostfile, flags.address)
        offer = Offer(
            address=address,
            port=flags.port or ports_for(str(run.path.resolve()))[0],
            gpus=count_gpus(os.environ),
            cores=len(os.sched_getaffinity(0)),
        )
        plan = plan_over(nodes, offer, run, os.environ)
    _check_inputs(config, run, gpus=offer.gpus, fresh=fresh)
    # Rank 0 takes the run's lock by itself: nobody holds it here.
    typed = {name: value for name, value in plan.environment.items() if name != OCCUPIED}
    return replace(plan, environment=typed)


def _shown(agreed: Agreed, run: RunDirectory) -> str:
    plan, files = agreed.plan, Written.of(run)
    hostfile, environment = str(files.hostfile), str(files.environment)
    texts = {hostfile: write_hostfile(plan.nodes), environment: environment_file(plan.environment)}
    given = runner_environment({}, plan.environment, environment)
    return shown_pdsh(plan, pdsh_argv(plan, hostfile, agreed.flags.rest), texts, given, os.getcwd())


def cluster_of(nodes: Sequence[Node], run: RunDirectory, flags: Flags) -> Cluster:
    """The hosts as ssh reaches them, with this machine's working directory and Python.

    Raises:
        LaunchFault: ssh's options in the environment cannot be used.
    """
    environment = forwarded(os.environ)
    python_finds = {"PYTHONSAFEPATH": "1", "PYTHONPATH": _import_path()}
    accelerator = {name: value for name, value in environment.items() if name == "DS_ACCELERATOR"}
    hosts = Hosts(
        names=tuple(node.name for node in nodes),
        options=options_of(flags, os.environ),
        directory=os.getcwd(),
        python=sys.executable,
        environment=python_finds | accelerator,
    )
    return Cluster(hosts, str(run.path.resolve()), OCCUPIED)


def plan_over(nodes: Sequence[Node], offer: Offer, run: RunDirectory, environment: Mapping[str, str]) -> LaunchPlan:
    """The plan of a run over hosts.

    Raises:
        LaunchFault: a variable of this environment that ranks need cannot pass a remote shell.
    """
    variables = launcher_environment(
        forwarded(environment), processes=nodes[0].slots, gpus=offer.gpus, cores=offer.cores, import_from=None
    )
    path = str(run.path.resolve())
    return LaunchPlan(
        nodes=tuple(nodes),
        address=offer.address,
        port=offer.port,
        module=TRAINING_MODULE,
        arguments=(f"{path}/config.yaml",),
        python=sys.executable,
        # An empty PYTHONPATH too: the runner would put its working directory into it.
        environment={**variables, "PYTHONPATH": _import_path(), OCCUPIED: path},
    )


def _import_path() -> str:
    """What ranks import from beside what is installed: the user's PYTHONPATH, behind a checkout's root."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(filter(None, [str(import_from() or ""), *own])))


def _check_paths(run: RunDirectory) -> None:
    for what, path in (
        ("the working directory", os.getcwd()),
        ("run.directory and run.name", str(run.path.resolve())),
        ("python", sys.executable),
    ):
        safe_path(what, path)


def _check_share(config: RunConfig, nodes: Sequence[Node]) -> None:
    check_world_size(config, len(nodes) * nodes[0].slots)
    wanted = config.engine.processes
    if wanted is not None and wanted != nodes[0].slots:
        say(f"engine.processes: {wanted} is for this machine alone; the hostfile gives {nodes[0].slots} ranks a host")


def _launch(agreed: Agreed, config: RunConfig, run: RunDirectory) -> Outcome:
    plan, cluster, flags = agreed
    files = Written.of(run)
    write_atomically(files.hostfile, write_hostfile(plan.nodes).encode())
    write_atomically(files.environment, environment_file(plan.environment).encode())
    try:
        got = cluster.hand_over(run.config.read_bytes())
    except LaunchFault as fault:
        run.change_status("failed", exit_code=USER_MISTAKE, message=str(fault))
        raise UserError(str(fault)) from None
    if got:
        say(f"{run.config} handed to {', '.join(got)}: no shared disk")
    say(f"{plan.world_size} ranks on {len(plan.nodes)} hosts, rank 0 at {plan.address}:{plan.port}")
    outcome = run_launcher(
        pdsh_argv(plan, str(files.hostfile), flags.rest),
        environment=runner_environment(os.environ, plan.environment, str(files.environment)),
        ranks=run.ranks,
        processes=plan.slots,
        leave_seconds=config.engine.timeout_seconds,
        say=lambda line: say(line, error=True),
        elsewhere=cluster,
    )
    _fetch_status(cluster, run)
    return outcome


def _fetch_status(cluster: Cluster, run: RunDirectory) -> None:
    """Rank 0 has written how the run ended; without a shared disk that lies on its host alone."""
    status = run.read_status()
    if status is not None and status.state == "running" and (text := cluster.status()) is not None:
        write_atomically(run.status, text.encode())
