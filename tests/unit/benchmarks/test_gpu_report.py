"""The GPU report: whatever a part left behind, the verdict is `ok` only if every part ran and passed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu_report import BATCHES, LAST_STEPS, STAGES, main, report
from trainer.config import load_config

ROOT = Path(__file__).parents[3]
STEPS = 30


def write_run(
    out: Path, stage: int, *, state: str = "done", first: float = 6.0, last: float = 4.0, scale: float = 512.0
) -> None:
    run = out / "runs" / f"zero{stage}"
    run.mkdir(parents=True, exist_ok=True)
    (run / "status.json").write_text(json.dumps({"state": state, "message": "said why"}))
    (run / "environment.json").write_text(json.dumps({"versions": {"torch": "2.11.0"}}))
    records = [
        {
            "step": step,
            "train/loss": first + (last - first) * min(1.0, (step - 1) / (STEPS - LAST_STEPS)),
            "optim/loss_scale": scale,
            "optim/skipped_steps": 3.0,
            "speed/questions_per_second": 1234.5,
            "memory/gib": 1.5,
        }
        for step in range(1, STEPS + 1)
    ]
    lines = [json.dumps(record) for record in [*records, {"step": STEPS, "val/loss": 1.0}]]
    lines = [line.replace("NaN", "null") for line in lines]  # as the recorder writes it
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_tests(out: Path, *, tests: int = 7, failures: int = 0, skipped: int = 0) -> None:
    counts = f'tests="{tests}" failures="{failures}" errors="0" skipped="{skipped}"'
    (out / "tests.xml").write_text(f'<testsuites><testsuite name="pytest" {counts}></testsuite></testsuites>')


def write_step(out: Path, images: int, *, equal: bool = True) -> None:
    figures = {
        "ratio": 11.5,
        "ratio_without_shared_keys_values": 5.25,
        "ratio_with_image_deduplication_only": 1.5,
        "gradients_equal": equal,
        "device": "a GPU",
        "paths": {"grouped": {"questions_per_second": 4321.0}},
    }
    (out / f"step.{images}.json").write_text(json.dumps(figures))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What a run without any fault leaves."""
    write_tests(tmp_path)
    for stage in STAGES:
        write_run(tmp_path, stage)
    for images in BATCHES:
        write_step(tmp_path, images)
    return tmp_path


def test_a_run_without_fault_is_ok_and_its_figures_are_in_table_and_json(out: Path, capsys):
    file = out / "gpu.json"
    assert main([str(out), "--json", str(file)]) == 0
    shown, written = capsys.readouterr().out, json.loads(file.read_text())
    assert shown.startswith("device: a GPU\n")
    assert "11.50x plain" in shown
    assert "30 steps, loss 6 to 4, scale 512, 3 skipped, 1,234 questions/s" in shown
    assert shown.rstrip().endswith("all is well")
    assert written["training"]["zero3"]["last_loss"] == 4.0
    assert written["versions"] == {"torch": "2.11.0"}
    assert written["stages_differ_by"] == 0.0


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda out: write_tests(out, failures=1), "GPU tests +FAILED"),
        (lambda out: write_tests(out, tests=7, skipped=7), "GPU tests +FAILED"),
        (lambda out: (out / "tests.xml").unlink(), "GPU tests +FAILED.*not run to the end"),
        (lambda out: (out / "tests.xml").write_text("<testsuites><tests"), "GPU tests +FAILED"),
        (lambda out: write_run(out, 2, state="failed"), "fp16 zero2 +FAILED.*failed: said why"),
        (lambda out: write_run(out, 2, last=6.5), "fp16 zero2 +FAILED.*the loss did not fall"),
        (lambda out: write_run(out, 2, last=float("nan")), "fp16 zero2 +FAILED.*the loss of step 1 is not finite"),
        (lambda out: write_run(out, 2, scale=1.0), "fp16 zero2 +FAILED.*no fp16 loss scale"),
        (lambda out: write_run(out, 3, first=6.1), "differ by 1.64e-02"),
        (lambda out: (out / "runs" / "zero1" / "metrics.jsonl").unlink(), "fp16 zero1 +FAILED.*said why"),
        (lambda out: (out / "runs" / "zero1" / "status.json").unlink(), "fp16 zero1 +FAILED.*not started"),
        (lambda out: write_step(out, 8, equal=False), "step, 8 images +FAILED.*the gradients differ"),
        (lambda out: (out / "step.2.json").unlink(), "step, 2 images +FAILED.*not run to the end"),
        (lambda out: (out / "step.2.json").write_text('{"ratio": 1'), "step, 2 images +FAILED"),
    ],
)
def test_every_fault_is_named_and_makes_the_exit_code_1(out: Path, capsys, spoil: Callable, why: str):
    spoil(out)
    assert main([str(out), "--json", str(out / "gpu.json")]) == 1
    shown = capsys.readouterr().out
    assert re.search(why, shown), shown
    assert shown.rstrip().endswith("something FAILED")
    assert json.loads((out / "gpu.json").read_text())["ok"] is False


def test_an_empty_directory_is_reported_and_not_ok(tmp_path: Path):
    found = report(tmp_path)
    assert found["ok"] is False
    assert [part["ok"] for part in (found["tests"], *found["training"].values(), *found["bench_step"].values())] == [
        False
    ] * (1 + len(STAGES) + len(BATCHES))


def test_the_script_trains_the_stages_and_measures_the_batches_that_the_report_looks_for():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert f"for stage in {' '.join(map(str, STAGES))}; do" in script
    assert f"for images in {' '.join(map(str, BATCHES))}; do" in script
    for name in ("$out/tests.xml", "$out/runs", "$out/step.$images.json"):
        assert name in script


def test_the_recipe_of_the_script_records_every_step_in_fp16():
    overrides = ["data.train=a", "data.val=b", "run.name=zero1", "engine.policy=ds_configs/zero1.json"]
    config = load_config(ROOT / "benchmarks" / "gpu_recipe.yaml", overrides)
    assert (config.precision, config.logging.every_steps) == ("fp16", 1)
    assert config.limits.max_steps > LAST_STEPS
