"""An `ssh` of the tests' own, first in PATH: hosts that are this machine under other names, and hosts that are down."""

import json
import os
import sys
from pathlib import Path

import pytest

_SCRIPT = """#!{python}
import json, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[2:] if words[0] in ("-o", "-p", "-F") else words[1:]
host, *command = words
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
if host in {down!r}:
    print(f"ssh: connect to host {{host}} port 22: No route to host", file=sys.stderr)
    sys.exit(255)
print("Welcome to", host, flush=True)
sys.exit(subprocess.run(["sh", "-c", " ".join(command)]).returncode)
"""


class FakeHosts:
    """What was asked of which host."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def asked(self) -> list[list[str]]:
        """The host and the command of every call."""
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []


def install_ssh(directory: Path, monkeypatch: pytest.MonkeyPatch, *, down: tuple[str, ...] = ()) -> FakeHosts:
    """Every host runs commands on this machine, but for those that are down."""
    directory.mkdir(parents=True, exist_ok=True)
    program, log = directory / "ssh", directory / "asked"
    program.write_text(_SCRIPT.format(python=sys.executable, log=str(log), down=down))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    return FakeHosts(log)
