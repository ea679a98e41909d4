"""The ranks of one node, where something else starts one process per node: the command of a container.

    python -m launch.pod --node-rank "$JOB_COMPLETION_INDEX" --hosts a-0.a,a-1.a --slots 8 --port 29400 \\
        --run runs/a trainer.train config.yaml

Signals reach the ranks and not their launcher, as on one machine. Returns what the ranks have left in `status.json`.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.network import addresses
from launch.plan.launch_plan import LaunchPlan, Node, node_commands
from launch.processes.local import count_gpus, launcher_environment, run_launcher

STOPPED = 75
"""EX_TEMPFAIL, as in `status.json`: stopped by a signal; the same command goes on."""
FAILED = 1
_POLL_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Start this node's ranks, wait for them, and return the exit code of the run."""
    options = _parse(arguments)
    names = options.hosts.split(",")
    if not 0 <= options.node_rank < len(names):
        print(f"launch.pod: --node-rank {options.node_rank}: expected 0 to {len(names) - 1}", file=sys.stderr)
        return 2
    # A stop at any moment is obeyed: before the ranks are there by leaving.
    signal.signal(signal.SIGTERM, _leave)
    if not _is_known(names[0], options.wait_seconds):
        print(f"launch.pod: {names[0]}: no address after {options.wait_seconds:g} s", file=sys.stderr)
        return FAILED
    plan = LaunchPlan(
        nodes=tuple(Node(name, options.slots) for name in names),
        address=names[0],
        port=options.port,
        module=options.module,
        arguments=(options.config,),
        python=sys.executable,
    )
    environment = launcher_environment(
        os.environ,
        processes=plan.slots,
        gpus=count_gpus(os.environ),
        cores=len(os.sched_getaffinity(0)),
        import_from=None,
    )
    before = _read(options.run / "status.json")
    outcome = run_launcher(
        node_commands(plan)[options.node_rank].argv,
        environment=environment,
        ranks=options.run / "ranks",
        processes=plan.slots,
        leave_seconds=options.leave_seconds,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if outcome.stopped_early:
        return STOPPED
    return _code(before, _read(options.run / "status.json"), outcome.returncode)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.pod", description="The ranks of one node.", allow_abbrev=False)
    parser.add_argument("--node-rank", type=int, required=True, help="of this node, from 0")
    parser.add_argument("--hosts", required=True, help="names of all nodes, by commas; rank 0 is on the first")
    parser.add_argument("--slots", type=int, required=True, help="ranks of a node")
    parser.add_argument("--port", type=int, required=True, help="of the rendezvous, on the first node")
    parser.add_argument("--run", type=Path, required=True, help="the run's directory, on a disk that all nodes share")
    parser.add_argument("--wait-seconds", type=float, default=600.0, help="for the first node to get an address")
    parser.add_argument("--leave-seconds", type=float, default=240.0, help="that ranks may outlive their launcher")
    parser.add_argument("module")
    parser.add_argument("config")
    return parser.parse_args(arguments)


def _is_known(name: str, seconds: float) -> bool:
    """Whether a name gets an address in time: pods of a job come up one after the other."""
    deadline = time.monotonic() + seconds
    while not addresses(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _leave(_number: int, _frame: Any) -> None:
    sys.exit(STOPPED)


def _code(before: dict[str, Any], after: dict[str, Any], launcher: int) -> int:
    """What the ranks agreed on, if they wrote it during this start; else what the launcher of this node returned."""
    code = after.get("exit_code")
    if after != before and isinstance(code, int):
        return code
    return launcher if launcher >= 0 else 128 - launcher


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
