"""One table and one JSON of what `benchmarks/gpu.sh` left behind, and whether it is what it has to be.

    python benchmarks/gpu_report.py OUT --json OUT/gpu.json

Exits 0 if every part was run and passed, else 1. Needs the standard library alone, so that it reports whatever failed.
"""

import argparse
import json
import math
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

STAGES = (1, 2, 3)
BATCHES = (2, 8)
"""Images of a step."""

LARGEST_SPREAD = 1e-3
"""By so much, relatively, the losses of the first step may differ between stages: none has changed a weight yet."""

LAST_STEPS = 10
"""Steps whose losses are averaged at the end of a run."""


def read_tests(path: Path) -> dict[str, Any]:
    """Counts of a JUnit file; passed only if tests ran and none failed or was skipped."""
    if not path.is_file():
        return {"ok": False, "why": "not run to the end"}
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except ElementTree.ParseError as error:
        return {"ok": False, "why": f"{path.name}: {error}"}
    counts = {key: sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "failures", "errors", "skipped")}
    bad = counts["failures"] + counts["errors"] + counts["skipped"]
    counts["passed"] = counts["tests"] - bad
    return {**counts, "ok": counts["passed"] > 0 and bad == 0}


def read_run(run: Path) -> dict[str, Any]:
    """Losses, loss scale and speed of a run; ok if it came to its end and the loss fell."""
    status = read_json(run / "status.json")
    if status is None:
        return {"ok": False, "why": "not started"}
    records = [record for record in read_lines(run / "metrics.jsonl") if "train/loss" in record]
    if not records:
        return {"ok": False, "why": status.get("message") or status.get("state", "no metrics")}
    last = records[-1]
    losses = [record["train/loss"] for record in records]
    if None in losses:  # what the recorder writes for NaN
        return {"ok": False, "why": f"the loss of step {records[losses.index(None)]['step']} is not finite"}
    figures = {
        "steps": last["step"],
        "first_loss": losses[0],
        "last_loss": sum(losses[-LAST_STEPS:]) / len(losses[-LAST_STEPS:]),
        "loss_scale": last.get("optim/loss_scale"),
        "skipped_steps": last.get("optim/skipped_steps"),
        "questions_per_second": last.get("speed/questions_per_second"),
        "memory_gib": last.get("memory/gib"),
    }
    faults = [
        why
        for fault, why in (
            (status.get("state") != "done", f"{status.get('state')}: {status.get('message')}"),
            (not figures["last_loss"] < figures["first_loss"], "the loss did not fall"),
            (not (figures["loss_scale"] or 0) > 1, "no fp16 loss scale"),
            (figures["skipped_steps"] == figures["steps"], "every step was skipped"),
        )
        if fault
    ]
    return {**figures, "ok": not faults, **({"why": "; ".join(faults)} if faults else {})}


def read_step(path: Path) -> dict[str, Any]:
    """The ratios of `duoflow bench step`; ok if the gradients were equal."""
    measured = read_json(path)
    if measured is None:
        return {"ok": False, "why": "not run to the end"}
    ok = bool(measured.get("gradients_equal"))
    return {**measured, "ok": ok, **({} if ok else {"why": "the gradients differ"})}


def spread(runs: dict[str, dict[str, Any]]) -> float | None:
    """Relative spread of the stages' first losses; None unless all are there."""
    losses = [run.get("first_loss") for run in runs.values()]
    if not losses or any(loss is None for loss in losses):
        return None
    return (max(losses) - min(losses)) / max(map(abs, losses))


def report(out: Path) -> dict[str, Any]:
    """Everything that gpu.sh left in a directory."""
    runs = {f"zero{stage}": read_run(out / "runs" / f"zero{stage}") for stage in STAGES}
    steps = {str(images): read_step(out / f"step.{images}.json") for images in BATCHES}
    environments = (read_json(out / "runs" / name / "environment.json") for name in runs)
    environment = next((found for found in environments if found), {})
    tests, apart = read_tests(out / "tests.xml"), spread(runs)
    same = apart is not None and apart <= LARGEST_SPREAD
    parts = [tests, *runs.values(), *steps.values()]
    return {
        "device": next((step["device"] for step in steps.values() if "device" in step), "unknown"),
        "versions": environment.get("versions", {}),
        "tests": tests,
        "training": runs,
        "stages_differ_by": apart,
        "bench_step": steps,
        "ok": same and all(part["ok"] for part in parts),
    }


def table(found: dict[str, Any]) -> str:
    """The report for a person."""
    tests = found["tests"]
    lines = [
        f"device: {found['device']}",
        line("GPU tests", tests, f"{tests.get('passed', 0)} of {tests.get('tests', 0)} passed"),
    ]
    lines += [line(f"fp16 {name}", run, describe_run(run)) for name, run in found["training"].items()]
    lines += [line(f"step, {images} images", step, describe_step(step)) for images, step in found["bench_step"].items()]
    apart = found["stages_differ_by"]
    shown = "unknown" if apart is None else f"{apart:.2e}, at most {LARGEST_SPREAD:g}"
    lines += [f"first losses of the stages differ by {shown}", "all is well" if found["ok"] else "something FAILED"]
    return "\n".join(lines)


def describe_run(run: dict[str, Any]) -> str:
    """The figures of a training run; nothing if there are none."""
    if "steps" not in run:
        return ""
    return (
        f"{run['steps']} steps, loss {number(run['first_loss'])} to {number(run['last_loss'])}, "
        f"scale {number(run['loss_scale'])}, {number(run['skipped_steps'])} skipped, "
        f"{number(run['questions_per_second'])} questions/s"
    )


def describe_step(step: dict[str, Any]) -> str:
    """The figures of a step benchmark; nothing if there are none."""
    if "ratio" not in step:
        return ""
    return (
        f"{number(step['paths']['grouped']['questions_per_second'])} questions/s, {step['ratio']:.2f}x plain; "
        f"without shared keys and values {step['ratio_without_shared_keys_values']:.2f}x, "
        f"images encoded once {step['ratio_with_image_deduplication_only']:.2f}x"
    )


def line(name: str, part: dict[str, Any], shown: str) -> str:
    """A line of the table."""
    text = "; ".join(piece for piece in (shown, part.get("why", "")) if piece)
    return f"{name:<18}{'ok' if part['ok'] else 'FAILED':<8}{text}"


def number(value: float | None) -> str:
    """A figure in four digits; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:,.4g}"


def read_json(path: Path) -> dict[str, Any] | None:
    """An object, or None where there is no whole file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that was cut off is left out."""
    records = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(text))
            except ValueError:
                break
    return records


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the directory that gpu.sh was given")
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args(arguments)
    found = report(options.out)
    print(table(found))
    if options.json is not None:
        aside = options.json.with_name(f".{options.json.name}.{os.getpid()}")
        aside.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(aside, options.json)
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
