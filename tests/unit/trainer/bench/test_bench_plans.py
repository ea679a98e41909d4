"""`duoflow bench overhead`, `memory` and `all`: what they count, and what they make of it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer import cli
from trainer.bench import every, measure_memory
from trainer.bench.measure_memory import Row
from trainer.bench.measure_overhead import Overhead, unequal
from trainer.bench.memory import table as memory_table
from trainer.bench.memory_worker import SHAPES, batch_of, build, planned
from trainer.bench.overhead import table as overhead_table
from trainer.config.load import load_config
from trainer.config.schema import REPOSITORY

ROW = Overhead("100 ms", 1, bare_ms=100.0, loop_ms=102.0, data=0.01, host=0.02, gauge_ms=0.102, loss=2.0, bare_loss=2.0)
ABOUT = {"device": "cpu", "torch": "2", "threads": 2, "rounds": 5}


def test_what_the_loop_adds_is_a_part_of_the_bare_step_and_the_gauge_one_of_the_loops() -> None:
    assert ROW.part == pytest.approx(0.02)
    assert ROW.gauge_part == pytest.approx(0.001)
    assert "2.0%" in overhead_table([ROW], ABOUT)[-1]


def test_steps_that_compute_something_else_are_no_comparison() -> None:
    assert unequal([ROW, ROW._replace(stage=0, loss=2.1), ROW._replace(model="1 s", loss=float("nan"))]) == [
        "100 ms at stage 0",
        "1 s at stage 1",
    ]


def test_errors_of_a_plan_are_parts_of_what_was_measured() -> None:
    row = Row("gqa_blip_base", planned_bytes=110, measured_bytes=100, predicted_ms=9.0, measured_ms=10.0)
    assert (row.memory_error, row.time_error) == (pytest.approx(0.1), pytest.approx(-0.1))
    again = {"bytes": 4, "memory": -0.6, "ms": 1.3, "time": 0.3}
    spared = {"recipe": "r", "bytes": 10, "ms": 1.0, "shares": {"0.6": again}}
    shown = "\n".join(memory_table([row], ABOUT | {"visits": 8, "probes": [2, 4], "checkpointing": spared}))
    assert "+10.0%" in shown
    assert "(-60 %)" in shown
    assert "(+30 %)" in shown


def test_the_shapes_are_those_of_recipes_that_there_are() -> None:
    for name, shape in SHAPES.items():
        recipe = load_config(REPOSITORY / "recipes" / f"{name}.yaml", [])
        assert recipe.task == shape.task
        assert recipe.data.questions_per_visit == shape.questions
        assert set(recipe.model.freeze) == set(shape.model["freeze"])
        assert recipe.model.gradient_checkpointing == shape.model.get("gradient_checkpointing", False)


def test_a_plan_of_a_shape_grows_with_its_visits() -> None:
    shape = SHAPES["nlvr2_blip_base"]
    built = build(shape)
    assert len(batch_of(built, shape, 3).shown) == 6  # two images each
    assert planned(built, shape, 4) > planned(built, shape, 2) > 0


def test_a_process_that_fails_to_measure_is_told(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    failed = SimpleNamespace(returncode=3, stdout="")
    monkeypatch.setattr(measure_memory.subprocess, "run", lambda *_, **__: failed)
    assert cli.main(["bench", "memory"]) == 2
    assert "measures bytes ended with 3" in capsys.readouterr().err


def test_all_runs_each_and_returns_the_worst_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=1 if "memory" in command else 0)

    monkeypatch.setattr(every.subprocess, "run", run)
    assert cli.main(["bench", "all", "--json", str(tmp_path / "out")]) == 1
    assert [command[4] for command in asked] == list(every.BENCHMARKS)
    assert [command[-1] for command in asked] == [str(tmp_path / "out" / f"{name}.json") for name in every.BENCHMARKS]


def test_every_benchmark_of_all_is_one(capsys) -> None:
    for name in every.BENCHMARKS:
        with pytest.raises(SystemExit) as left:
            cli.build_parser().parse_args(["bench", name, "--help"])
        assert left.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_measured_figures_are_put_together_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"device": "cpu", "torch": "2", "threads": 1, "visits": 8, "probes": [2, 4]}
    times = {
        "rows": {name: {"predicted": 1.0, "step": 2.0} for name in SHAPES},
        "checkpointing": {"0.0": 10.0, "0.6": 13.0, "1.0": 14.0},
    }

    def run(command: list[str], **_: object) -> SimpleNamespace:
        sizes = {"planned": 5, "measured": 4, "step": {"0.6": 4, "1.0": 2}.get(command[-1], 10)}
        answer = times if command[3] == "seconds" else sizes
        return SimpleNamespace(returncode=0, stdout="noise\n" + json.dumps(common | answer) + "\n")

    monkeypatch.setattr(measure_memory.subprocess, "run", run)
    rows, about = measure_memory.measure_memory()
    assert rows == [Row(name, 5, 4, 1.0, 2.0) for name in SHAPES]
    shares = about["checkpointing"]["shares"]
    assert {share: found["memory"] for share, found in shares.items()} == pytest.approx({"0.6": -0.6, "1.0": -0.8})
    assert {share: found["time"] for share, found in shares.items()} == pytest.approx({"0.6": 0.3, "1.0": 0.4})
