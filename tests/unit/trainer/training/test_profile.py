"""`--profile N`: a Chrome trace of N steps, behind those that warm up."""

import json
from pathlib import Path

import torch
from torch.profiler import record_function

from trainer.training.profile import LEFT_OUT, StepProfiler


def run(directory: Path, *, traced: int, steps: int, first: int = 1) -> None:
    profiler = StepProfiler(directory, traced, torch.device("cpu"))
    for step in range(first, first + steps):
        profiler.step_begins(step)
        with record_function(f"step {step}"):
            torch.ones(2) + 1
        profiler.step_ended()
    profiler.close()


def steps_in(path: Path) -> list[str]:
    events = json.loads(path.read_text())["traceEvents"]
    return sorted({event["name"] for event in events if event.get("name", "").startswith("step ")})


def test_the_trace_has_exactly_the_steps_that_its_name_says(tmp_path: Path) -> None:
    run(tmp_path / "profile", traced=2, steps=8, first=11)
    first = 11 + LEFT_OUT
    assert [path.name for path in (tmp_path / "profile").iterdir()] == [f"steps{first}-{first + 1}.json"]
    assert steps_in(tmp_path / "profile" / f"steps{first}-{first + 1}.json") == [f"step {first}", f"step {first + 1}"]


def test_a_run_that_ends_before_leaves_what_there_was(tmp_path: Path) -> None:
    run(tmp_path, traced=5, steps=LEFT_OUT + 1)
    assert steps_in(tmp_path / f"steps{LEFT_OUT + 1}-{LEFT_OUT + 1}.json") == [f"step {LEFT_OUT + 1}"]
    run(tmp_path / "none", traced=5, steps=LEFT_OUT)
    assert not (tmp_path / "none").exists()


def test_a_disk_that_takes_no_trace_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    run(tmp_path / "file", traced=1, steps=LEFT_OUT + 2)
    assert (tmp_path / "file").read_text() == "in the way"
