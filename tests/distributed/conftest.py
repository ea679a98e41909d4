"""Two launches serve all tests of the engine: one of two ranks, one of a process alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.forked_ranks import fork_ranks
from tests.distributed.launch import launch_ranks

# Nothing may need a compiler: DeepSpeed would build an operator for its CPU collectives.
NO_COMPILER = {"CXX": "/nonexistent", "CC": "/nonexistent"}
WORKER = "tests.distributed.engine_worker"
CASES = (
    "losses",
    "resume",
    "elsewhere",
    "poisoned",
    "no_gradient",
    "evaluation",
    "mismatch",
    "agreements",
    "failed_save",
    "rounding",
    "imports",
)

Results = dict[str, list[Any]]
"""Per case what each rank saw, by rank."""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both launches write; the second continues checkpoints of the first."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def two_ranks(workplace: Path) -> Results:
    """All cases on two ranks."""
    done = launch_ranks(WORKER, str(workplace), *CASES, env=NO_COMPILER)
    assert done.returncode == 0, done.stdout[-3000:]
    return _read(workplace, CASES, 2)


@pytest.fixture(scope="session")
def alone(workplace: Path, two_ranks: Results) -> Results:  # noqa: ARG001 (its checkpoints are continued)
    """The cases on one process without a launcher; bf16 and fp16 resume the same alone."""
    cases = ("losses", "elsewhere", "no_gradient", "agreements", "failed_save", "rounding", "imports")
    done = fork_ranks(WORKER, str(workplace), *cases, processes=1, env=NO_COMPILER)
    assert done.returncode == 0, done.stdout[-3000:]
    return _read(workplace, cases, 1)


def _read(workplace: Path, cases: tuple[str, ...], world_size: int) -> Results:
    return {
        case: [json.loads((workplace / f"{case}.{world_size}.rank{r}.json").read_text()) for r in range(world_size)]
        for case in cases
    }
