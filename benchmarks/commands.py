"""What benchmarks share that are made of commands: each is printed and run as a user would type it."""

import shlex
import subprocess
import sys


def run_duoflow(*arguments: str, quiet: bool = False) -> int:
    """Print and run a `duoflow` command; returns its exit code.

    Args:
        quiet: keep what it prints to itself.
    """
    print(f"\n$ duoflow {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "trainer.cli", *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL if quiet else None, check=False).returncode


def numbers(text: str) -> list[int]:
    """The argument `1,2,3`."""
    return [int(number) for number in text.split(",")]
