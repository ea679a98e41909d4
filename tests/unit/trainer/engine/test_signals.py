"""Real signals to real processes. A process answers a line on stdin only after it has handled every earlier signal."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]

STOPPING = """
import signal, sys
from trainer.engine.signals import STOP_SIGNALS, StopRequest

now = [100.0]
signal.signal(signal.SIGUSR1, lambda *_: None)
before = [signal.getsignal(number) for number in STOP_SIGNALS]
with StopRequest(clock=lambda: now[0]) as stop:
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, "leave\\n"):
        if line.startswith("later"):
            now[0] += float(line.split()[1])
        print(stop.requested, stop.reason, flush=True)
print([signal.getsignal(number) for number in STOP_SIGNALS] == before, flush=True)
"""


class Child:
    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.greeting = self.read()

    def read(self) -> str:
        return self.process.stdout.readline().strip()

    def ask(self, line: str = "state") -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def send(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        with self.process:  # closes the pipes and waits
            pass


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child(STOPPING)
    yield child
    child.kill()


def test_without_a_signal_nothing_is_requested(child):
    assert child.ask() == "False None"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_each_stop_signal_sets_the_flag_and_the_process_goes_on(child, number):
    child.send(number)
    assert child.ask() == f"True {number.name}"
    assert child.ask("later 60") == f"True {number.name}"


def test_a_ctrl_c_that_arrives_as_three_signals_is_one_request(child):
    child.send(signal.SIGINT)
    assert child.ask("later 2") == "True SIGINT"
    child.send(signal.SIGTERM)
    assert child.ask("later 2.9") == "True SIGINT"
    child.send(signal.SIGINT)
    assert child.ask() == "True SIGINT"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_later_sigint_ends_the_process_at_once(child, first):
    child.send(first)
    child.ask("later 5.1")
    child.send(signal.SIGINT)
    assert child.process.wait(timeout=60) == 130


def test_later_signals_that_launchers_repeat_change_nothing(child):
    child.send(signal.SIGUSR1)
    child.ask("later 60")
    child.send(signal.SIGTERM, signal.SIGUSR1)
    assert child.ask() == "True SIGUSR1"


def test_the_handlers_of_before_come_back(child):
    child.send(signal.SIGTERM)
    assert child.ask("leave") == "True"
    assert child.process.wait(timeout=60) == 0
