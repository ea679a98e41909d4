"""What `duoflow train` does: check, resume or start over, launch the ranks, and return the code that they left."""

import contextlib
import os
import signal
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.hosts.deaths import describe_deaths, signal_of
from launch.network import free_port
from launch.processes.local import Outcome, count_gpus, launcher_command, launcher_environment, run_launcher
from launch.processes.ranks import attending
from shards.progress import doing, say
from trainer.commands.background import go_on_in_background
from trainer.commands.restarts import keep_training
from trainer.config import RunConfig, load_config
from trainer.config.exported import has_old_export
from trainer.config.resume_policy import Difference, check_resumable, config_diff
from trainer.config.schema import REPOSITORY, check_world_size
from trainer.exit_codes import DONE, FAILED, STOPPED
from trainer.run_directory import OCCUPIED, RunDirectory, Status
from trainer.training.caveats import caveats
from trainer.training.preflight import Machine, check_start, preflight

TRAINING_MODULE = "trainer.train"

Launch = Callable[[], Outcome]
"""Starts the ranks of a run that is occupied and written, and returns when they are gone; may be called again then."""
Preparation = Callable[[RunConfig, RunDirectory, bool], Launch]
"""(configuration, run, fresh) -> how its ranks are launched, after every check; nothing is written or started yet."""


def start_training(
    recipe: Path,
    overrides: Sequence[str],
    *,
    fresh: bool = False,
    prepare: Preparation | None = None,
    detach: bool = False,
    restarts: int = 0,
) -> int:
    """Train a recipe to its end, or go on with the run of that name; returns the exit code.

    Args:
        fresh: set an existing run of that name aside and start over.
        prepare: where the ranks run; None is this machine.
        detach: return when everything was checked, and train in a process without a terminal.
        restarts: how often to start again after a fault.

    Raises:
        UserError: the recipe, its data or an existing run does not allow it.
    """
    config = load_config(recipe, overrides)
    run = RunDirectory.of(config)
    logged, finished = check_previous(run, config, fresh=fresh)
    if finished is not None:
        say(finished)
        return DONE
    with doing(f"{run.path}: checking the recipe, its data and its weights"):
        launch = (prepare or prepare_here)(config, run, fresh)
    notes = caveats(config, None if fresh else run.read_config())
    with contextlib.ExitStack() as locks:
        write_start(config, run, locks, fresh=fresh)
        for difference in logged:
            say(f"{run.path}: {difference}; the run goes on with the new value")
        for note in notes:
            say(f"{run.path}: note: {note}", error=True)

        def attend(log: str | None = None, ready: Callable[[], None] | None = None) -> int:
            with attending(run.ranks, log):
                if ready is not None:
                    ready()
                return keep_training(run, lambda: settle(run, launch()), restarts)

        if not detach:
            return attend()
        log = str(run.console.relative_to(run.path))
        pid = go_on_in_background(run.console, lambda ready: attend(log, ready))
        say(
            f"{run.path}: training as process {pid}, with its output in {run.console}; `duoflow attach {run.path}` "
            f"shows it, `duoflow stop {run.path}` ends it"
        )
        return DONE


def prepare_training(recipe: Path, overrides: Sequence[str], *, ranks: int, fresh: bool = False) -> int:
    """Check a run and write its `config.yaml`, for ranks that something else starts; returns the exit code.

    Prints the path of the file, and nothing else, on stdout; nothing at all if the run is finished.

    Args:
        ranks: how many there will be, on all nodes together.
        fresh: set an existing run of that name aside.

    Raises:
        UserError: the recipe, its data or an existing run does not allow it.
    """
    config = load_config(recipe, overrides)
    run = RunDirectory.of(config)
    logged, finished = check_previous(run, config, fresh=fresh)
    if finished is not None:
        say(finished, error=True)
        return DONE
    check_world_size(config, ranks)
    check_start(config, device_type="cuda" if count_gpus(os.environ) else "cpu", fresh=fresh)
    notes = caveats(config, None if fresh else run.read_config())
    with contextlib.ExitStack() as locks:
        write_start(config, run, locks, fresh=fresh)
    for line in (
        *(f"{difference}; the run goes on with the new value" for difference in logged),
        *(f"note: {note}" for note in notes),
    ):
        say(f"{run.path}: {line}", error=True)
    say(str(run.config.resolve()))
    return DONE


def prepare_here(config: RunConfig, run: RunDirectory, fresh: bool) -> Launch:
    """Check a run for this machine; its ranks are launched on it.

    Raises:
        UserError: what is wrong.
    """
    machine = preflight(config, fresh=fresh)
    if config.engine.processes is not None and machine.processes < config.engine.processes:
        say(f"engine.processes: {config.engine.processes}, but a rank each for {machine.gpus} GPU(s) is all there is")
    return lambda: _launch(run, config, machine)


def write_start(config: RunConfig, run: RunDirectory, locks: contextlib.ExitStack, *, fresh: bool) -> None:
    """Occupy a run's directory until `locks` are closed, and leave there what its ranks start from.

    Args:
        fresh: set an existing run of that name aside.

    Raises:
        UserError: somebody trains there.
    """
    _occupy(run, locks, fresh=fresh)
    run.write_config(config)
    run.change_status("running", message="starting")


def check_previous(run: RunDirectory, config: RunConfig, *, fresh: bool) -> tuple[list[Difference], str | None]:
    """Whether a run of this name can go on with this configuration.

    Returns:
        The differences that belong in the log; and what to say if there is nothing left to do, else None.

    Raises:
        ConfigError: it would be another run.
    """
    previous = None if fresh else run.read_config()
    if previous is None:
        return [], None
    logged = check_resumable(previous, config, str(run.path))
    finished = is_finished(run.read_status(), previous, config) and not has_old_export(run.export)
    return logged, _finished_message(run) if finished else None


def check_unoccupied(run: RunDirectory) -> None:
    """Whether nobody trains in a run's directory; it is not made if it is not there.

    Raises:
        UserError: somebody does.
    """
    if run.ranks.is_dir():
        with run.lock():
            return


def is_finished(status: Status | None, previous: RunConfig, config: RunConfig) -> bool:
    """Whether a run has nothing left to do. New limits or another patience reopen a finished one."""
    reopened = any(
        difference.key.startswith(("limits.", "early_stopping.")) for difference in config_diff(previous, config)
    )
    return status is not None and status.state == "done" and not reopened


def settle(run: RunDirectory, outcome: Outcome) -> int:
    """The exit code of a run whose ranks are gone; if they left none behind, the status says what is known.

    Ranks that were killed are named: those that lost them know only that somebody is gone.
    """
    status = run.read_status()
    is_fault = not (outcome.stopped_early or outcome.killed)
    if status is not None and status.state != "running":
        if is_fault and status.exit_code == FAILED and (deaths := describe_deaths(run.ranks, outcome.returncode)):
            run.change_status("failed", exit_code=FAILED, message=f"{deaths}; {status.message}")
            say(f"duoflow: {run.path}: {deaths}", error=True)
        return FAILED if status.exit_code is None else status.exit_code
    if outcome.stopped_early:
        code, state, message = STOPPED, "stopped", "stopped before the ranks were up; run the same command again"
    elif outcome.killed:
        code, state, message = FAILED, "failed", "the ranks were killed; run the same command again"
    elif outcome.left:
        # The run goes on: its status is not this process's to change.
        say(
            f"duoflow: {run.path}: the launcher ended ({outcome.returncode}) and ranks go on without it on "
            f"{', '.join(outcome.left)}; `duoflow attach {run.path}` follows them, `duoflow stop {run.path}` makes "
            "them save and leave",
            error=True,
        )
        return FAILED
    else:
        code, state = FAILED, "failed"
        deaths = deaths_of(run.ranks, outcome)
        message = f"{deaths} (the launcher returned {outcome.returncode}); see {run.logs}"
    run.change_status(state, exit_code=code, message=message)
    say(f"duoflow: {run.path}: {message}", error=True)
    return code


def deaths_of(ranks: Path, outcome: Outcome) -> str:
    """Which ranks ended without a word and why, as far as it shows; some may have ended before they left a record."""
    described = describe_deaths(ranks, outcome.returncode)
    if described is not None:
        return described
    cause = outcome.want_of_memory if signal_of(outcome.returncode) == signal.SIGKILL else None
    return "the ranks ended without a word" + ("" if cause is None else f" before they were up; {cause}")


def _finished_message(run: RunDirectory) -> str:
    status = run.read_status()
    assert status is not None
    how = f" ({status.message})" if status.message else ""
    return (
        f"{run.path} is finished at step {status.global_step}{how}; nothing to do. "
        "A higher limits.epochs goes on, --fresh starts over."
    )


def _occupy(run: RunDirectory, locks: contextlib.ExitStack, *, fresh: bool) -> None:
    """Make the directory this process's own; `fresh` sets an old one aside, unless somebody is training in it."""
    existed = run.path.exists()
    run.create()
    locks.enter_context(run.lock())
    if fresh and existed:
        say(f"{run.path}: the old run is now {run.set_aside()}", error=True)
        run.create()
        locks.enter_context(run.lock())


def _launch(run: RunDirectory, config: RunConfig, machine: Machine) -> Outcome:
    occupied = {OCCUPIED: str(run.path.resolve())}
    say(f"{run.path}: starting {machine.processes} rank(s)")
    return launch_ranks(TRAINING_MODULE, [str(run.config.resolve())], config, machine, run.ranks, occupied)


def launch_ranks(
    module: str,
    arguments: list[str],
    config: RunConfig,
    machine: Machine,
    ranks: Path,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Start a module on every device of this machine through the launcher, and wait for its end.

    Args:
        ranks: the directory in which ranks leave their records.
        environment: what they get beside this process's own.
    """
    command = launcher_command(
        module,
        arguments,
        python=sys.executable,
        processes=machine.processes,
        port=free_port(),
        gpus=machine.gpu_numbers,
    )
    given = launcher_environment(
        os.environ,
        processes=machine.processes,
        gpus=machine.gpus,
        cores=len(os.sched_getaffinity(0)),
        import_from=import_from(),
    )
    return run_launcher(
        command,
        environment={**given, **(environment or {})},
        ranks=ranks,
        processes=machine.processes,
        leave_seconds=config.engine.timeout_seconds,
        say=lambda line: say(line, error=True),
    )


def import_from() -> Path | None:
    """The checkout, when the packages come from one: ranks do not look into the working directory."""
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return None if REPOSITORY in installed else REPOSITORY
