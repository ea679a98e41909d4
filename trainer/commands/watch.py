"""The verbs of a run without a terminal, `attach`, `stop` and `status`, and what `train` takes for it."""

import argparse
from pathlib import Path
from typing import Any

RUNS = Path("runs")
"""Where recipes put runs unless they say otherwise (`run.directory`)."""


def add_watch_options(train: argparse.ArgumentParser) -> None:
    """Add to `train` what makes a run go on by itself."""
    train.add_argument(
        "--detach", action="store_true", help="check everything, then train without this terminal; see `duoflow attach`"
    )
    train.add_argument(
        "--restarts", metavar="N", type=_count, default=0, help="start again by itself after a fault, N times at most"
    )
    train.add_argument(
        "--min-nodes",
        metavar="N",
        type=_count,
        help="with --restarts and --hostfile: go on with the hosts that answer, N at least, if the lanes allow it",
    )


def add_attach_parser(verbs: Any) -> None:
    """Add `attach`; its namespace carries `handler`: namespace -> exit code."""
    attach = verbs.add_parser(
        "attach",
        description="Show what a run says until it ends, and return its exit code. Ctrl-C lets go of it and does not "
        "stop it. Where the process that started the ranks is gone, this one takes its place.",
        epilog="duoflow attach runs/my_run",
    )
    attach.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME")
    attach.set_defaults(handler=_attach)


def add_stop_parser(verbs: Any) -> None:
    """Add `stop`; its namespace carries `handler`: namespace -> exit code."""
    stop = verbs.add_parser(
        "stop",
        description="Ask a run to save and leave, and wait until it has. The same `duoflow train` goes on with it.",
        epilog="duoflow stop runs/my_run --wait 60",
    )
    stop.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME")
    stop.add_argument("--kill", action="store_true", help="end what has not left in time with SIGKILL")
    stop.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_count,
        help="how long to wait for it (default: engine.timeout_seconds of the run)",
    )
    stop.set_defaults(handler=_stop)


def add_status_parser(verbs: Any) -> None:
    """Add `status`; its namespace carries `handler`: namespace -> exit code."""
    status = verbs.add_parser(
        "status",
        description="A table of the runs below a directory, or everything about one run. Hosts that do not answer "
        "within seconds are named and not waited for.",
        epilog="duoflow status\nduoflow status runs/my_run --json",
    )
    status.add_argument(
        "run", metavar="RUN", nargs="?", type=Path, default=RUNS, help="a run, or a directory of runs (default: runs)"
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(handler=_status)


def _attach(arguments: argparse.Namespace) -> int:
    from trainer.commands.attach import attach  # here and below: they read recipes, which takes a while to import

    return attach(arguments.run)


def _stop(arguments: argparse.Namespace) -> int:
    from trainer.commands.stop import stop

    return stop(arguments.run, kill=arguments.kill, wait_seconds=arguments.wait)


def _status(arguments: argparse.Namespace) -> int:
    from trainer.commands.status import status

    return status(arguments.run, as_json=arguments.json)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return number
