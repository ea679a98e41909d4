"""Page retrieval in whole runs: killed and gone on with, at every stage on two ranks, exported, evaluated, and read by
another model.

Two launches serve all tests.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from tests.distributed.training_runs import IN_SECOND_EPOCH, Runs, launched
from tests.distributed.training_worker import Case, Fault
from tests.documents import shared_vlm
from tests.retrieval import write_checkpoint
from tests.runs import evaluate_run, write_recipe
from tests.selection import STAGES, STAGES_EVERY_DAY, chosen_stages, with_slow
from tests.task_corpora import write_task
from trainer.cli import main
from trainer.engine.state_file import MODEL

pytestmark = pytest.mark.distributed

DONE, KILLED = 0, -9
STEPS = 3
IN_SECOND_STEP = Fault(function=IN_SECOND_EPOCH.function, call=2, signal="SIGKILL")
LORA = (
    "retrieval.freeze=[text, vision]",
    *(f"retrieval.lora.{tower}.rank=2" for tower in ("text", "vision")),
    *(f"retrieval.lora.{tower}.targets=[q_proj, fc1]" for tower in ("text", "vision")),
    *(f"retrieval.lora.{tower}.dropout=0.2" for tower in ("text", "vision")),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def data(home: Path) -> dict[str, object]:
    return write_task(home, "mpdocvqa")


@pytest.fixture(scope="module")
def recipe(home: Path, data: dict[str, object]) -> Path:
    return write_recipe(
        home / "retrieval.yaml",
        data | {"pages_per_visit": 3},
        task="mpdocvqa_retrieval",
        model={"retrieval": str(write_checkpoint("clip", home / "clip"))},
        batch={"visits": 4, "micro_visits": 2},
        limits={"max_steps": STEPS},
        checkpoint={"every_steps": 1},
        early_stopping={"metric": "val/hit@1"},
    )


@pytest.fixture(scope="module")
def reader(home: Path, data: dict[str, object]) -> Path:
    return write_recipe(
        home / "reader.yaml",
        data | {"pages_per_visit": 2},
        task="mpdocvqa",
        model={"vlm": shared_vlm()},
        batch={"visits": 4, "micro_visits": 1},
        limits={"max_steps": 1},
        early_stopping={"metric": "val/anls"},
        validate_every={"max_images": 2},
    )


def case(recipe: Path, out: Path, name: str, *overrides: str, fault: Fault | None = None) -> Case:
    places = (f"run.directory={out / 'runs'}", f"run.name={name.removesuffix('_again')}")
    return Case(name=name, recipe=str(recipe), overrides=[*places, *overrides], fault=fault)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, home: Path, recipe: Path, reader: Path) -> Runs:
    out = tmp_path_factory.mktemp("alone")
    siglip = f"model.retrieval={write_checkpoint('siglip', home / 'siglip')}"
    cases = [
        case(recipe, out, "contrastive"),
        case(recipe, out, "triplet", "retrieval.loss=triplet"),
        case(recipe, out, "siglip", siglip),
        case(recipe, out, "whole", *LORA),
        case(recipe, out, "killed", *LORA, fault=IN_SECOND_STEP),
        case(recipe, out, "killed_again", *LORA),
        case(recipe, out, "bf16", "precision=bf16", "retrieval.freeze=[vision]"),
        case(reader, out, "reader"),
    ]
    return launched(out, cases, processes=1)


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Runs:
    out = tmp_path_factory.mktemp("together")
    cases = [
        case(recipe, out, f"zero{stage}", f"engine.policy=ds_configs/zero{stage}.json")
        for stage in chosen_stages(request)
    ]
    return launched(out, cases, processes=2)


def test_every_run_comes_to_its_end(alone: Runs, together: Runs) -> None:
    codes = {**alone.codes, **together.codes}
    assert codes.pop("killed") == [KILLED]
    assert all(set(found) == {DONE} for found in codes.values()), codes


def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(alone: Runs) -> None:
    assert alone["killed"].bits("last") == alone["whole"].bits("last")
    assert alone["killed"].bits("best") == alone["whole"].bits("best")
    assert alone["killed"].losses == alone["whole"].losses


@pytest.mark.parametrize("stage", with_slow(STAGES, STAGES_EVERY_DAY))
def test_the_losses_do_not_depend_on_ranks_or_stage(alone: Runs, together: Runs, stage: int) -> None:
    assert alone["contrastive"].losses.keys() == set(range(1, STEPS + 1))
    for step, losses in together[f"zero{stage}"].losses.items():
        assert losses == pytest.approx(alone["contrastive"].losses[step], rel=1e-5)


@pytest.mark.parametrize("name", ["contrastive", "siglip"])
def test_an_export_is_the_checkpoint_with_what_was_trained(alone: Runs, home: Path, name: str) -> None:
    run, kind = alone[name], "siglip" if name == "siglip" else "clip"
    directory = run.path / "export" / "retrieval"
    model, report = AutoModel.from_pretrained(directory, output_loading_info=True)
    assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(AutoProcessor.from_pretrained(directory)).__name__.lower() == f"{kind}processor"
    trained = load_file(run.checkpoint("best") / MODEL)
    exported, started = model.state_dict(), AutoModel.from_pretrained(home / kind).state_dict()
    learnt = started["logit_scale"].view(1) + trained["temperature.offset"]
    torch.testing.assert_close(exported["logit_scale"].view(1), learnt)
    assert torch.equal(exported["text_model.final_layer_norm.weight"], trained["text.model.final_layer_norm.weight"]), (
        "bit for bit"
    )
    if kind == "siglip":
        assert torch.equal(exported.pop("logit_bias"), started["logit_bias"])
    assert len(exported) == len(trained)


@pytest.mark.parametrize("name", ["contrastive", "triplet", "siglip", "whole"])
def test_an_evaluation_of_the_export_is_the_validation_of_its_step(alone: Runs, name: str) -> None:
    run = alone[name]
    validated = run.validations[run.exported["step"]]
    metrics, _ = evaluate_run(run.path, "val")
    merged = 1e-4 if name == "whole" else 1e-6  # adapters are added to the weights, which rounds otherwise
    for metric, value in validated.items():
        if not metric.endswith("count"):
            assert metrics[metric] == pytest.approx(value, rel=merged, abs=0.2 if name == "whole" else None), metric
    ranked = json.loads((run.path / "predictions" / "val.json").read_text())
    assert all(names and len(set(names)) == len(names) for names in ranked.values())


def test_where_training_began_is_the_checkpoint(alone: Runs) -> None:
    first, _ = evaluate_run(alone["contrastive"].path, "val", weights="initial")
    trained, _ = evaluate_run(alone["contrastive"].path, "val")
    assert first["val/retrieve_loss"] != trained["val/retrieve_loss"]


def test_the_best_pages_that_were_found_are_those_that_are_read(alone: Runs) -> None:
    evaluate_run(alone["contrastive"].path, "val")
    ranked = alone["contrastive"].path / "predictions" / "val.json"
    everything, _ = evaluate_run(alone["reader"].path, "val")
    longest = max(map(len, json.loads(ranked.read_text()).values()))
    all_pages, _ = evaluate_run(
        alone["reader"].path, "val", overrides=[f"data.retrieved={ranked}", f"data.retrieved_pages={longest}"]
    )
    assert all_pages == everything
    best, _ = evaluate_run(
        alone["reader"].path, "val", overrides=[f"data.retrieved={ranked}", "data.retrieved_pages=1"]
    )
    assert best["val/answer_loss"] != everything["val/answer_loss"]


def test_what_a_retrieval_cannot_do_is_one_line(
    alone: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(alone["contrastive"].path)
    assert main(["answer", run, "--image", "p.png", "--question", "What is the total?"]) == 2
    assert "ranks pages and writes no answers" in capsys.readouterr().err
    assert main(["evaluate", run, "--split", "val", "--pipeline", "pnp"]) == 2
    assert "is a retrieval of pages; leave it out" in capsys.readouterr().err
    assert main(["export", run, "--out", str(tmp_path / "copy")]) == 0
    assert "fusion" not in capsys.readouterr().out
    assert AutoModel.from_pretrained(tmp_path / "copy" / "retrieval") is not None
