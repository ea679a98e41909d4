"""The benchmark of vision-language models: its paths compute the same, and are timed by turns in processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer import cli
from trainer.bench.measure_vlm import CONVERSATION, ROWS, SHARED, VlmMeasurement, path_names
from trainer.bench.vlm import table
from trainer.bench.vlm_workload import VlmSizes, ask, batch_of, build_objective, plain_rows

TINY = VlmSizes(questions=3, prefix=16, width=32, layers=2, heads=2, vision_width=16, vocab_size=64, rank=2)


def test_both_ways_have_the_loss_gradients_and_answers_of_rows() -> None:
    asking, found = ask(TINY), {}
    for way in (SHARED, ROWS):
        objective = build_objective(TINY, shared=way == SHARED)
        batch = batch_of(asking, way)
        objective(batch).loss.backward()
        found[way] = (objective(batch).loss.detach(), dict(objective.named_parameters()), objective.write(batch).ids)
    assert float(found[SHARED][0]) == pytest.approx(float(found[ROWS][0]), rel=1e-5)
    assert torch.equal(found[SHARED][2], found[ROWS][2])
    for name, parameter in found[ROWS][1].items():
        torch.testing.assert_close(found[SHARED][1][name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_tokens_that_trainers_of_rows_have() -> None:
    objective, batch = build_objective(TINY, shared=False), batch_of(ask(TINY), ROWS)
    with torch.no_grad():
        rows = plain_rows(batch)
        expected = objective.model(**rows).loss
        assert float(objective(batch).loss) == pytest.approx(float(expected), rel=1e-5)
    assert (rows["labels"] != -100).sum() == len(batch.learnt.token)


def test_a_conversation_is_one_row() -> None:
    batch = batch_of(ask(TINY), CONVERSATION)
    assert len(batch.sequences.ids) == 1
    assert len(batch.learnt.weight) == TINY.questions


def test_the_command_measures_in_processes_and_writes_a_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.bench.vlm_workload.VlmSizes", lambda **given: replace(TINY, **given))
    file = tmp_path / "vlm.json"
    words = ["bench", "vlm", "--device", "cpu", "--questions", "2", "--prefix", "16", "--rounds", "1", "--json"]
    assert cli.main([*words, str(file)]) == 0
    (found,) = json.loads(file.read_text())["measured"]
    assert found["same_answers"]
    assert found["sizes"]["questions"] == 2
    assert set(found["speedup"]) == {ROWS}
    assert all(bytes_ > 0 for bytes_ in found["peak_bytes"].values())
    assert "2 questions about an image of 16 tokens" in capsys.readouterr().out


def test_another_loss_is_told() -> None:
    seconds = [{SHARED: 1.0, ROWS: 4.0, CONVERSATION: 1.0}]
    losses = {SHARED: 2.0, ROWS: 2.1, CONVERSATION: 9.0}
    peaks = dict.fromkeys(losses, 1)
    found = VlmMeasurement(sizes=TINY, rounds=seconds, losses=losses, peak_bytes=peaks, writing=[], same_answers=True)
    assert found.unequal == [SHARED]
    assert found.times(ROWS) == 4.0
    assert "4.00x" in table(found)
    assert path_names(reference=False) == [SHARED, ROWS]


@pytest.mark.parametrize(("option", "value"), [("--prefix", "10"), ("--rounds", "0"), ("--questions", "0")])
def test_what_cannot_be_measured_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "vlm", option, value]) == 2
    assert f"{option} {value}: expected" in capsys.readouterr().err
