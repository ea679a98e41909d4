import json
import logging
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.reporting.recorders import JsonlRecorder, Recorder, Recorders


class MemoryRecorder(Recorder):
    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def record(self, step, values) -> None:
        self.seen.append((step, dict(values)))

    def text(self, name, text) -> None:
        self.seen.append((name, text))

    def close(self) -> None:
        self.seen.append(("closed",))


class FullDisk(MemoryRecorder):
    full = True

    def record(self, step, values) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().record(step, values)

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def write(recorder, step, values) -> None:
    with Recorders([recorder]) as recorders:
        recorders.record(step, values)


def lines(path) -> list[dict]:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_each_record_is_one_json_object_with_step_and_time(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    recorder = JsonlRecorder(path, clock=lambda: 1700000000.25)
    recorder.record(1, {"train/loss": 0.5, "train/grad_norm": 2})
    recorder.record(2, {"val/accuracy": 0.25})
    recorder.text("recipe", "optim: {}")
    recorder.close()
    assert lines(path) == [
        {"step": 1, "time": 1700000000.25, "train/loss": 0.5, "train/grad_norm": 2.0},
        {"step": 2, "time": 1700000000.25, "val/accuracy": 0.25},
    ]


def test_what_is_not_a_number_becomes_null_and_the_file_stays_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(JsonlRecorder(path), 1, {"nan": math.nan, "up": math.inf, "down": -math.inf, "fine": 1.0})
    [entry] = lines(path)
    assert [entry[name] for name in ("nan", "up", "down", "fine")] == [None, None, None, 1.0]


def test_a_record_is_in_the_file_before_the_recorder_is_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder = JsonlRecorder(path)
    recorder.record(7, {"train/loss": 1.0})
    assert [entry["step"] for entry in lines(path)] == [7]
    recorder.close()


def test_a_resume_drops_the_records_that_were_rolled_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    before = JsonlRecorder(path)
    for step in range(1, 6):
        before.record(step, {"train/loss": float(step)})
    before.close()
    after = JsonlRecorder(path, resumed_step=3)
    after.record(4, {"train/loss": 40.0})
    after.close()
    assert [(entry["step"], entry["train/loss"]) for entry in lines(path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_new_run_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(JsonlRecorder(path), 1, {"train/loss": 1.0})
    write(JsonlRecorder(path), 9, {"train/loss": 2.0})
    assert [entry["step"] for entry in lines(path)] == [9]


def test_half_a_line_left_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "time": 0.0}\n[]\n{"step": "?"}\n{"step": 2, "ti')
    write(JsonlRecorder(path, resumed_step=5), 3, {})
    assert [entry["step"] for entry in lines(path)] == [1, 3]


def test_a_resume_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write(JsonlRecorder(path), 9, {"train/loss": 1.0})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        JsonlRecorder(path, resumed_step=3)
    assert path.read_bytes() == before


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_half_behind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder = JsonlRecorder(path, clock=lambda: 0.0)
    recorder.record(1, {"train/loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            recorder.record(2, {"train/loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.record(3, {"train/loss": 3.0})
    recorder.close()
    assert [entry["step"] for entry in lines(path)] == [1, 3]


def test_the_fan_out_gives_everything_to_each_and_closes_all():
    first, second = MemoryRecorder(), MemoryRecorder()
    with Recorders([first, second]) as recorders:
        recorders.text("recipe", "seed: 1")
        recorders.record(1, {"train/loss": 1.0})
    assert first.seen == second.seen == [("recipe", "seed: 1"), (1, {"train/loss": 1.0}), ("closed",)]


def test_a_recorder_that_cannot_write_is_named_once_and_stops_neither_the_run_nor_the_others(caplog):
    full, well = FullDisk(), MemoryRecorder()
    recorders = Recorders([full, well])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            recorders.record(step, {})
        assert caplog.text.count("FullDisk cannot write") == 1
        full.full = False
        recorders.record(3, {})
        full.full = True
        recorders.record(4, {})
        recorders.close()
    assert caplog.text.count("FullDisk cannot write") == 2
    assert [seen[0] for seen in well.seen] == [0, 1, 2, 3, 4, "closed"]
    assert full.seen == [(3, {})]


def test_an_error_of_our_own_is_not_taken_for_a_full_disk():
    class Broken(MemoryRecorder):
        def close(self) -> None:
            raise KeyError("train/loss")

    with pytest.raises(KeyError):
        Recorders([Broken()]).close()


def test_without_recorders_nothing_happens():
    with Recorders([]) as recorders:
        recorders.record(1, {"train/loss": 1.0})


def test_nothing_but_the_tensorboard_recorder_needs_torch():
    modules = (
        "training.early_stopping",
        "training.schedule",
        "scoring.metrics",
        "reporting.recorders",
        "reporting.progress",
        "training.loss_watch",
        "engine.signals",
    )
    imports = "; ".join(f"import trainer.{module}" for module in modules)
    program = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[4], check=False).returncode == 0
