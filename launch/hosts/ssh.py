"""Hosts that answer through ssh: `launch.node` there, asked in parallel, with one line for a host that cannot."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from launch.network import addresses
from launch.plan.words import LaunchFault, safe_path, safe_value

ASKED_AT_ONCE = 64
ANSWER_SECONDS = 60.0
"""A host imports torch to count GPUs; the first time from a cold disk that takes a while."""
_CANNOT_CONNECT = 255
"""ssh's own exit code, as against that of the command."""


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Hosts with the same DuoFlow in the same place."""

    names: tuple[str, ...]
    options: tuple[str, ...]
    """Of ssh."""
    directory: str
    """Working directory there, absolute; as here."""
    python: str
    environment: Mapping[str, str]
    """Variables that Python needs to find DuoFlow there."""

    def command(self, verb: str, *words: str) -> str:
        """The remote command: nothing in it is special to a shell.

        Raises:
            LaunchFault: a path or a value would be.
        """
        variables = [f"{name}={safe_value(name, value)}" for name, value in self.environment.items()]
        run = [safe_value("the path of the run", word) for word in words]
        place, python = safe_path("the working directory", self.directory), safe_path("python", self.python)
        return " ".join(["cd", place, "&&", "env", *variables, python, "-m", "launch.node", verb, *run])

    def ask(self, host: str, verb: str, *words: str, stdin: bytes = b"") -> dict[str, Any]:
        """What one host answers.

        Raises:
            LaunchFault: it cannot be reached, has no such directory, Python or DuoFlow, or does not answer in time.
        """
        argv = ["ssh", *self.options, host, self.command(verb, *words)]
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, timeout=ANSWER_SECONDS, check=False)
        except FileNotFoundError:
            raise LaunchFault("ssh is not installed here: apt-get install openssh-client") from None
        except subprocess.TimeoutExpired:
            raise LaunchFault(f"host {host}: no answer within {ANSWER_SECONDS:g} s; try `ssh {host} true`") from None
        if done.returncode == _CANNOT_CONNECT:
            raise LaunchFault(
                f"host {host}: ssh cannot reach it ({_last_line(done.stderr)}); `ssh {host} true` has to work without "
                "a question"
            )
        if done.returncode != 0:
            raise LaunchFault(
                f"host {host}: {_last_line(done.stderr)}; every host needs the working directory {self.directory}, "
                f"{self.python} and DuoFlow at the same paths as here"
            )
        # A login shell may greet before the answer.
        return json.loads(done.stdout.decode().strip().splitlines()[-1])

    def ask_all(self, verb: str, *words: str, stdin: bytes = b"") -> dict[str, dict[str, Any]]:
        """What every host answers, by name.

        Raises:
            LaunchFault: that of the first host that has one, and how many more there are.
        """
        answers, faults = self.ask_each(verb, *words, stdin=stdin)
        if faults:
            first, *more = faults.values()
            raise LaunchFault(f"{first}{f' (and {len(more)} more hosts)' if more else ''}")
        return answers

    def ask_each(
        self, verb: str, *words: str, stdin: bytes = b""
    ) -> tuple[dict[str, dict[str, Any]], dict[str, LaunchFault]]:
        """Answers, and faults, by host in the order of the hosts."""

        def one(host: str) -> dict[str, Any] | LaunchFault:
            try:
                return self.ask(host, verb, *words, stdin=stdin)
            except LaunchFault as fault:
                return fault

        with ThreadPoolExecutor(max_workers=min(ASKED_AT_ONCE, len(self.names))) as pool:
            said = dict(zip(self.names, pool.map(one, self.names), strict=True))
        faults = {host: answer for host, answer in said.items() if isinstance(answer, LaunchFault)}
        return {host: answer for host, answer in said.items() if not isinstance(answer, LaunchFault)}, faults


def look_up(host: str, options: Sequence[str]) -> list[str]:
    """IP addresses of a host: of its name, or else of what ssh's configuration says that it is; none if unknown."""
    return addresses(host) or addresses(_configured_name(host, options))


def _configured_name(host: str, options: Sequence[str]) -> str:
    asked = subprocess.run(["ssh", *options, "-G", host], capture_output=True, text=True, check=False)
    for line in asked.stdout.splitlines():
        key, _, value = line.partition(" ")
        if key == "hostname":
            return value
    return host


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
