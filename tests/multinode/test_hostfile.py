"""`duoflow train --hostfile` over hosts that are reached by ssh: its code is the run's, whatever happens to whom."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.training_runs import DROPOUT
from tests.multinode.lab import POLL_SECONDS, Host, Lab
from tests.multinode.ranks import DONE, FAILED, LOGIN, MISTAKE, STOPPED, next_port
from tests.multinode.runs import ENDLESS, LATENESS, SLACK, TIMEOUT_SECONDS, Project, Run, assert_same_bits

PATIENT = "engine.start_timeout_seconds=120"
"""Ranks import torch on their own here, and on a busy machine not at the same time."""
UP_SECONDS = 480.0
"""For ranks to be training: what starts them imports torch too."""


class Terminal:
    """Where somebody types on the first host; what goes on there when a test ends is ended."""

    def __init__(self, host: Host, project: Project) -> None:
        self.host, self._project = host, project
        self._started: list[subprocess.Popen] = []

    def hostfile(self, *hosts: Host | str, slots: int = 1) -> Path:
        names = [host if isinstance(host, str) else host.name for host in hosts]
        path = self._project.directory / f"hosts.{'.'.join(names)}"
        path.write_text("".join(f"{name} slots={slots}\n" for name in names))
        return path

    def duoflow(self, *words: str | Path, seconds: float = UP_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return self.host.run(
            self._command(*words), environment=LOGIN, cwd=self._project.directory, timeout_seconds=seconds
        )

    def begin(self, *words: str | Path) -> subprocess.Popen:
        """Start the command."""
        process = self.host.popen(
            self._command(*words),
            environment=LOGIN,
            cwd=self._project.directory,
            stdout=(self._project.directory / "terminal.txt").open("a"),
            stderr=subprocess.STDOUT,
        )
        self._started.append(process)
        return process

    @property
    def said(self) -> str:
        return (self._project.directory / "terminal.txt").read_text()

    def signal(self, number: signal.Signals, *texts: str) -> None:
        """Signal what runs on this host with one of these texts in its command."""
        found = {process.pid for text in texts for process in self.host.matching(text)}
        assert found, texts
        for pid in found:
            os.kill(pid, number)

    def close(self, hosts: tuple[Host, ...]) -> None:
        for process in self._started:
            self.host.end(process)
        for host in hosts:
            for text in ("trainer.train", "deepspeed.launcher", "trainer.cli"):
                for process in host.matching(text) if host.is_alive else []:
                    os.kill(process.pid, signal.SIGKILL)

    def _command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "trainer.cli", *map(str, words)]


@pytest.fixture
def terminal(lab: Lab, two: tuple[Host, Host], project: Project) -> Iterator[Terminal]:
    made = Terminal(two[0], project)
    yield made
    made.close(tuple(lab.hosts.values()))


def _endless(terminal: Terminal, hosts: tuple[Host, ...], project: Project, name: str, *more: str | Path) -> Run:
    hostfile = terminal.hostfile(*hosts)
    words = (f"run.name={name}", PATIENT, *ENDLESS, "checkpoint.every_steps=3")
    terminal.begin("train", project.recipe, *words, "--hostfile", hostfile, *more)
    run = project.run(name)
    run.wait_for_step(4, UP_SECONDS)
    return run


def _assert_code_is_the_runs(process: subprocess.Popen, run: Run, state: str, code: int, terminal: Terminal) -> None:
    assert process.wait(UP_SECONDS) == code, terminal.said
    assert (run.status["state"], run.status["exit_code"]) == (state, code)


def _wait_until_gone(hosts: tuple[Host, ...], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := [process for host in hosts for process in host.matching("trainer.train --local_rank")]:
        assert time.monotonic() < deadline, left
        time.sleep(POLL_SECONDS)


def test_a_run_over_hosts_has_the_bits_of_one_host(
    terminal: Terminal, two: tuple[Host, Host], project: Project, on_one_host: Run
):
    words = (project.recipe, "run.name=launched", PATIENT, *DROPOUT)
    done = terminal.duoflow("train", *words, "--hostfile", terminal.hostfile(*two))
    assert done.returncode == DONE, done.stdout + done.stderr
    run = project.run("launched")
    assert (run.status["state"], run.status["exit_code"]) == ("done", DONE)
    assert_same_bits(run, on_one_host)


def test_a_stop_of_the_command_saves_and_returns_75(terminal: Terminal, two: tuple[Host, Host], project: Project):
    run = _endless(terminal, two, project, "interrupted")
    terminal.signal(signal.SIGTERM, "trainer.cli train")
    _assert_code_is_the_runs(terminal._started[0], run, "stopped", STOPPED, terminal)
    assert run.progress("last")["global_step"] == run.status["global_step"] >= 4
    _wait_until_gone(two, SLACK)


def test_a_dead_link_is_the_commands_code_and_names_the_host(
    terminal: Terminal, two: tuple[Host, Host], project: Project
):
    run = _endless(terminal, two, project, "dead_link")
    fault = time.monotonic()
    two[1].unplug()
    try:
        _wait_until_gone(two, TIMEOUT_SECONDS + LATENESS + SLACK)
        _assert_code_is_the_runs(terminal._started[0], run, "failed", FAILED, terminal)
        assert time.monotonic() - fault < UP_SECONDS
    finally:
        two[1].plug()
    # Both sides of the cut leave at the same time, and either may be the first to write down why.
    assert f"rank 1 on {two[1].name}" in run.status["message"]
    assert f"rank 1 on {two[1].name}" in terminal.said


def test_ranks_whose_launcher_was_killed_are_found_adopted_and_stopped(
    terminal: Terminal, two: tuple[Host, Host], project: Project
):
    run = _endless(terminal, two, project, "orphaned")
    terminal.signal(signal.SIGKILL, "trainer.cli train", "deepspeed.launcher.runner", "pdsh")
    step = run.last_step
    run.wait_for_step(step + 2)

    second = terminal.duoflow(
        "train", project.recipe, "run.name=orphaned", PATIENT, *ENDLESS, "--hostfile", terminal.hostfile(*two)
    )
    assert second.returncode == MISTAKE, second.stdout + second.stderr
    assert len(second.stderr.strip().splitlines()) == 1, second.stderr

    found = json.loads(terminal.duoflow("status", run.path, "--json").stdout)
    assert found["state"] == "orphaned"
    assert {(rank["host"], rank["life"]) for rank in found["ranks"]} == {(host.name, "alive") for host in two}

    attached = terminal.begin("attach", run.path)
    stopped = terminal.duoflow("stop", run.path)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    _assert_code_is_the_runs(attached, run, "stopped", STOPPED, terminal)
    _wait_until_gone(two, SLACK)


@pytest.mark.parametrize("fault", ["unknown", "off", "port"])
def test_hosts_that_cannot_take_part_are_a_line_and_nothing_starts(
    fault: str, terminal: Terminal, two: tuple[Host, Host], lab: Lab, project: Project
):
    second: Host | str = {"unknown": "nowhere", "port": two[1]}.get(fault, "off")
    if fault == "off":
        gone = lab.add_host()
        gone.power_off()
        second = gone.name
    flags: list[str] = []
    listener = None
    if fault == "port":
        port = next_port()
        flags = ["--", f"--master_port={port}"]
        listener = two[0].popen([sys.executable, "-S", "-m", "http.server", str(port)], stderr=subprocess.DEVNULL)
        while two[0].run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]).returncode != 0:
            time.sleep(POLL_SECONDS)
    try:
        hostfile = terminal.hostfile(two[0], second)
        done = terminal.duoflow("train", project.recipe, f"run.name=no_{fault}", "--hostfile", hostfile, *flags)
    finally:
        if listener is not None:
            two[0].end(listener)
    assert done.returncode == MISTAKE, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert {"unknown": "nowhere: unknown host", "off": f"host {second}", "port": "is taken"}[fault] in line
    assert not project.run(f"no_{fault}").path.exists()


@pytest.mark.slow
def test_a_run_goes_on_with_the_hosts_that_are_left(
    terminal: Terminal, two: tuple[Host, Host], four: tuple[Host, ...], project: Project
):
    run = _endless(terminal, (two[0], four[3]), project, "fewer", "--restarts", "2", "--min-nodes", "1")
    four[3].power_off()
    saved = run.last_step
    deadline = time.monotonic() + UP_SECONDS
    while not (run.directory.restarts.exists() and run.status["global_step"] > saved):
        assert time.monotonic() < deadline, terminal.said
        time.sleep(POLL_SECONDS)
    stopped = terminal.duoflow("stop", run.path)
    assert stopped.returncode == 0, stopped.stderr
    _assert_code_is_the_runs(terminal._started[0], run, "stopped", STOPPED, terminal)


@pytest.mark.slow
def test_a_run_without_its_terminal_is_followed_to_its_end(
    terminal: Terminal, two: tuple[Host, Host], project: Project, on_one_host: Run
):
    words = (project.recipe, "run.name=detached", PATIENT, *DROPOUT)
    done = terminal.duoflow("train", *words, "--hostfile", terminal.hostfile(*two), "--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    attached = terminal.duoflow("attach", project.run("detached").path)
    assert attached.returncode == DONE, attached.stdout + attached.stderr
    assert_same_bits(project.run("detached"), on_one_host)


@pytest.mark.slow
def test_deepspeeds_own_launcher_starts_a_run_as_well(
    terminal: Terminal, two: tuple[Host, Host], project: Project, on_one_host: Run
):
    prepared = terminal.duoflow("train", project.recipe, "run.name=deepspeed", PATIENT, *DROPOUT, "--prepare", "2")
    assert prepared.returncode == 0, prepared.stderr
    environment = project.directory / ".deepspeed_env"
    environment.write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    command = ["deepspeed", "--hostfile", terminal.hostfile(*two), "--master_port", next_port()]
    command += ["--module", "trainer.train", prepared.stdout.strip()]
    done = two[0].run(list(map(str, command)), environment=LOGIN, cwd=project.directory, timeout_seconds=UP_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_bits(project.run("deepspeed"), on_one_host)
