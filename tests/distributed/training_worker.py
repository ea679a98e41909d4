"""Trains one run after the other, each in a forked process of its own: what takes longest, the imports, is done once.

python -m tests.distributed.training_worker OUT, where OUT/cases.json is a list of `Case`s. Every rank writes the exit
codes of its processes to OUT/codes.rankN.json.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.atomic import write_atomically
from tests.distributed.launch import free_port

CASE_SECONDS = 120.0
"""After it, the process of a case is killed, and its code is that of the kill."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A signal that a rank sends to itself in front of a call of a function, counted from 1."""

    function: str
    """module:name, such as trainer.training.loop:train_step."""
    call: int
    signal: str
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One start of a run."""

    name: str
    recipe: str
    overrides: list[str] = field(default_factory=list)
    fault: Fault | None = None
    copy: list[str] = field(default_factory=list)
    """[run directory, its copy], made before the start."""
    homes: list[str] = field(default_factory=list)
    """Working directory of each rank, as on hosts that share no disk; empty is that of all."""
    on_rank_1: list[str] = field(default_factory=list)
    """Overrides that rank 1 has beside the others."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Case":
        fault = values["fault"]
        return cls(**{**values, "fault": None if fault is None else Fault(**fault)})


def write_cases(directory: Path, cases: list[Case]) -> None:
    (directory / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))


def read_codes(directory: Path, processes: int) -> dict[str, list[int]]:
    """Exit codes by case, in the order of the ranks; negative for a signal."""
    ranks = [json.loads((directory / f"codes.rank{rank}.json").read_text()) for rank in range(processes)]
    return {name: [codes[name] for codes in ranks] for name in ranks[0]}


def main() -> None:
    # Once for all cases, and not for the loader's workers, which import this file. The second is what DeepSpeed imports
    # at its start: with it come torch's compilers, for longer than a case computes.
    import trainer.training.rank  # noqa: F401

    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank")
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rank, codes = int(os.environ.get("RANK", "0")), {}
    for values in json.loads((out / "cases.json").read_text()):
        case = Case.of(values)
        _prepare(case, rank, out / f"{case.name}.port")
        codes[case.name] = _in_a_process_of_its_own(lambda case=case: _train(case, rank))
        (out / f"codes.rank{rank}.json").write_text(json.dumps(codes))


def _prepare(case: Case, rank: int, port: Path) -> None:
    """Rank 0 copies what the case goes on from, and then says where its ranks meet: each case has a port of its own."""
    if rank == 0:
        if case.copy:
            shutil.copytree(*case.copy)
        write_atomically(port, str(free_port()).encode())
    deadline = time.monotonic() + CASE_SECONDS
    while not port.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.environ["MASTER_PORT"] = port.read_text()


def _in_a_process_of_its_own(act: Callable[[], int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = act()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + CASE_SECONDS
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


def _train(case: Case, rank: int) -> int:
    print(f"=== {case.name}, rank {rank}", flush=True)
    if case.fault is not None and case.fault.rank == rank:
        _install(case.fault)
    if case.homes:
        os.chdir(case.homes[rank])
        os.environ["LOCAL_RANK"] = "0"  # the first, and only, rank of its host
    more = case.on_rank_1 if rank == 1 else []
    return sys.modules["trainer.training.rank"].main([case.recipe, *case.overrides, *more])


def _install(fault: Fault) -> None:
    module, _, path = fault.function.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.call:
            os.kill(os.getpid(), signal.Signals[fault.signal])
        return original(*args, **kwargs)

    setattr(owner, name, counted)


if __name__ == "__main__":
    main()
