"""What a host does for a launcher on another one: `python -m launch.node VERB ...` through ssh. Answers JSON, a line.

Its arguments have been checked to pass a shell unchanged. A run is known by its directory: every process of it carries
that in an environment variable, the mark, so that processes of other runs are never touched.
"""

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.network import is_free
from launch.plan.launch_plan import NODE_LAUNCHER
from launch.probe import probe
from launch.processes.local import count_gpus
from launch.processes.ranks import live_ranks, send


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the launcher asks for."""
    parser = argparse.ArgumentParser(prog="launch.node", description="What a host does for a launcher on another one.")
    verbs = parser.add_subparsers(required=True)
    _add(verbs, "greet", greet).add_argument("ports", nargs="*", type=int)
    _add(verbs, "receive", lambda run: receive(run, sys.stdin.buffer.read()))
    _add(verbs, "report", report)
    _add(verbs, "probe", lambda run: probe(run, json.loads(sys.stdin.buffer.read())))
    _add(verbs, "stop", stop)
    for verb, handler in (("end", end), ("kill", kill)):
        _add(verbs, verb, handler).add_argument("mark")
    options = vars(parser.parse_args(arguments))
    print(json.dumps(options.pop("handler")(**options)))
    return 0


def greet(run: Path, ports: Sequence[int]) -> dict[str, Any]:
    """What this host has, the first of `ports` that is free here, and who trains in the run's directory already."""
    return {
        "host": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": count_gpus(os.environ),
        "port": next(filter(is_free, ports), None),
        "training": live_ranks(run / "ranks"),
    }


def receive(run: Path, config: bytes) -> dict[str, Any]:
    """Take the run's configuration, unless the very same lies there already: on a shared disk it does."""
    path = run / "config.yaml"
    try:
        same = path.read_bytes() == config
    except FileNotFoundError:
        same = False
    if not same:
        run.mkdir(parents=True, exist_ok=True)
        aside = run / f".config.yaml.{socket.gethostname()}.{os.getpid()}.partial"  # containers have equal ids
        aside.write_bytes(config)
        aside.replace(path)
    return {"wrote": not same}


def report(run: Path) -> dict[str, Any]:
    """How the run stands by this host's disk, and the ranks that live here."""
    try:
        status = (run / "status.json").read_text(encoding="utf-8")
    except OSError:
        status = None
    return {"status": status, "training": live_ranks(run / "ranks")}


def stop(run: Path) -> dict[str, Any]:
    """Ask the ranks of this host to save and leave."""
    ranks = live_ranks(run / "ranks")
    send(signal.SIGTERM, ranks)
    return {"ranks": ranks}


def end(run: Path, mark: str) -> dict[str, Any]:
    """End a start whose ranks are not up yet: its launcher here ends those that it has."""
    launchers = [pid for pid in marked(f"{mark}={run}") if NODE_LAUNCHER.encode() in _proc(pid, "cmdline").split(b"\0")]
    send(signal.SIGTERM, launchers)
    return {"launchers": launchers}


def kill(run: Path, mark: str) -> dict[str, Any]:
    """End every process of the run on this host, at once."""
    pids = marked(f"{mark}={run}")
    send(signal.SIGKILL, pids)
    return {"killed": pids}


def marked(mark: str) -> list[int]:
    """This user's processes with `NAME=VALUE` in their environment; none where there is no /proc."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid != os.getpid() and mark.encode() in _proc(pid, "environ").split(b"\0")]


def _proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or belongs to somebody else
        return b""


def _add(verbs: Any, name: str, handler: Any) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=handler.__doc__)
    parser.add_argument("run", type=Path)
    parser.set_defaults(handler=handler)
    return parser


if __name__ == "__main__":
    sys.exit(main())
