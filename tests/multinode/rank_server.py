"""Forks ranks on a host: what takes longest there, importing torch and deepspeed, is done once for all tests.

python -m tests.multinode.rank_server reads a JSON line for each rank or signal from stdin, and writes one when a rank
has ended. A rank runs the module `trainer.train` as `python -m` would.
"""

import json
import os
import runpy
import select
import signal
import sys
import time
from typing import Any

POLL_SECONDS = 0.02


def main() -> None:
    import trainer.training.rank  # noqa: F401 - once for all ranks

    names: dict[int, str] = {}
    unread = b""
    print(json.dumps({"up": os.getpid()}), flush=True)
    while True:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            received = os.read(0, 1 << 16)
            if not received:
                return
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                _obey(json.loads(line), names)
        while names and (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            code = os.waitstatus_to_exitcode(ended[1])
            print(json.dumps({"name": names.pop(ended[0]), "code": code, "time": time.monotonic()}), flush=True)


def _obey(request: dict[str, Any], names: dict[int, str]) -> None:
    if "signal" in request:
        for pid, name in names.items():
            if name == request["name"]:
                os.kill(pid, signal.Signals[request["signal"]])
        return
    child = os.fork()
    if child == 0:
        _become(request)
    names[child] = request["name"]


def _become(request: dict[str, Any]) -> None:
    """Be this rank, to the end of the process."""
    code = 1
    try:
        os.setsid()
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(request["directory"])
        os.environ.update(request["environment"])
        sys.argv = ["trainer.train", *request["arguments"]]
        runpy.run_module("trainer.train", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
