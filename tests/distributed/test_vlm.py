"""A vision-language model in whole runs: killed and gone on with, at every stage on two ranks, exported, merged, asked.

Two launches serve all tests.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from model.vlm.objective import NAME
from tests.distributed.training_runs import IN_SECOND_EPOCH, Runs, launched
from tests.distributed.training_worker import Case, Fault
from tests.runs import evaluate_run, write_recipe, write_shards
from tests.selection import STAGES, STAGES_EVERY_DAY, chosen_stages, with_slow
from tests.vlm import write_checkpoint
from trainer.cli import main
from trainer.engine.state_file import MODEL

pytestmark = pytest.mark.distributed

DONE, KILLED = 0, -9
STEPS = 2
IN_SECOND_STEP = Fault(function=IN_SECOND_EPOCH.function, call=2, signal="SIGKILL")
DROPOUT = ("vlm.language.dropout=0.1", "vlm.vision.dropout=0.1", "model.gradient_checkpointing=true")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    base = write_checkpoint("qwen2_5_vl", home / "base")
    data = {**write_shards(home), "questions_per_visit": 3, "max_question_tokens": 64, "max_answer_tokens": 8}
    return write_recipe(
        home / "vlm.yaml",
        data | {"shuffle_shards": 2, "workers": 0},
        model={"vlm": str(base)},
        vlm={"language": {"rank": 4}, "vision": {"rank": 2}},
        limits={"max_steps": STEPS},
        checkpoint={"every_steps": 1},
        validate_every={"max_images": 3},
    )


def case(recipe: Path, out: Path, name: str, *overrides: str, fault: Fault | None = None) -> Case:
    places = (f"run.directory={out / 'runs'}", f"run.name={name.removesuffix('_again')}")
    return Case(name=name, recipe=str(recipe), overrides=[*places, *overrides], fault=fault)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Runs:
    out = tmp_path_factory.mktemp("alone")
    cases = [
        case(recipe, out, "shared"),
        case(recipe, out, "rows", "vlm.questions=rows"),
        case(recipe, out, "conversation", "vlm.questions=conversation"),
        case(recipe, out, "whole", *DROPOUT),
        case(recipe, out, "killed", *DROPOUT, fault=IN_SECOND_STEP),
        case(recipe, out, "killed_again", *DROPOUT),
        case(recipe, out, "from_export", f"initialize_from={out / 'runs' / 'shared' / 'export'}", "optim.lr=1e-30"),
    ]
    return launched(out, cases, processes=1)


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Runs:
    out = tmp_path_factory.mktemp("together")
    cases = [
        case(recipe, out, f"zero{stage}", f"engine.policy=ds_configs/zero{stage}.json", "data.workers=1")
        for stage in chosen_stages(request)
    ]
    return launched(out, cases, processes=2)


def test_every_run_comes_to_its_end(alone: Runs, together: Runs) -> None:
    codes = {**alone.codes, **together.codes}
    assert codes.pop("killed") == [KILLED]
    assert all(set(found) == {DONE} for found in codes.values()), codes


def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(alone: Runs) -> None:
    assert alone["killed"].bits("last") == alone["whole"].bits("last")
    assert alone["killed"].losses == alone["whole"].losses


def test_grouped_questions_train_as_rows_do_step_by_step(alone: Runs) -> None:
    together, rows = alone["shared"].losses, alone["rows"].losses
    assert together.keys() == rows.keys() == set(range(1, STEPS + 1))
    for step, losses in together.items():
        assert losses == pytest.approx(rows[step], rel=1e-4)
    assert alone["conversation"].losses[1] != pytest.approx(together[1], rel=1e-4)
    assert alone["shared"].predictions == alone["rows"].predictions


@pytest.mark.parametrize("stage", with_slow(STAGES, STAGES_EVERY_DAY))
def test_the_losses_do_not_depend_on_ranks_or_stage(alone: Runs, together: Runs, stage: int) -> None:
    for step, losses in together[f"zero{stage}"].losses.items():
        assert losses == pytest.approx(alone["shared"].losses[step], rel=1e-5)


def test_what_is_trained_is_what_the_adapters_have(alone: Runs) -> None:
    saved = load_file(alone["shared"].checkpoint("last") / MODEL)
    assert all(name.startswith(f"lora.{NAME}.") for name in saved)
    sides = {"language" if ".language_model." in name else "vision" for name in saved}
    assert sides == {"language", "vision"}


def test_peft_loads_the_export_and_a_merged_copy_answers_as_it_does(alone: Runs, recipe: Path, tmp_path: Path) -> None:
    run, base = alone["shared"].path, str(recipe.parent / "base")
    processor = AutoProcessor.from_pretrained(base)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    given = processor(images=[Image.new("RGB", (56, 56), "red")], text=[text], return_tensors="pt")
    plain = AutoModelForImageTextToText.from_pretrained(base).eval()
    with torch.no_grad():
        untrained = plain(**given).logits
        adapted = PeftModel.from_pretrained(plain, run / "export" / "lora_vlm").eval()
        expected = adapted(**given).logits
    assert not torch.allclose(expected, untrained, atol=1e-6)
    assert main(["export", str(run), "--out", str(tmp_path / "copy"), "--merge"]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "copy" / NAME).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(**given).logits, expected, rtol=1e-4, atol=1e-5)
    assert type(AutoProcessor.from_pretrained(tmp_path / "copy" / NAME)) is type(processor)
    assert not (tmp_path / "copy" / "lora_vlm").exists()


def test_an_export_evaluates_to_the_validation_of_its_step(alone: Runs) -> None:
    run = alone["from_export"]
    last = max(run.validations)
    metrics, _ = evaluate_run(run.path, "val", overrides=["data.workers=0"])
    assert run.exported["adapters"] == {NAME: "lora_vlm"}
    assert metrics["val/accuracy"] == pytest.approx(run.validations[last]["val/accuracy"], abs=0.5)
    exported = load_file(alone["shared"].path / "export" / "lora_vlm" / "adapter_model.safetensors")
    started = load_file(run.checkpoint("last") / MODEL)
    for name, value in exported.items():
        trained = started[f"lora.{NAME}.{name.removeprefix('base_model.model.')}"]
        torch.testing.assert_close(trained, value, rtol=1e-5, atol=1e-7)


def test_several_photos_are_asked_about_at_once(
    alone: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 40), colour).save(tmp_path / f"p{number}.png")
    photos = [str(tmp_path / f"p{number}.png") for number in range(2)]
    run = str(alone["shared"].path)
    assert main(["answer", run, "--image", *photos, "--question", "Which one is red?"]) == 0
    assert "%" in capsys.readouterr().out
    assert main(["answer", run, "--image", *photos, "--question", "Which?", "--overlay", str(tmp_path / "o.png")]) == 2
    assert "--overlay: needs a trained fusion" in capsys.readouterr().err


def test_shuffled_images_are_those_of_other_samples(alone: Runs) -> None:
    own, _ = evaluate_run(alone["shared"].path, "val")
    other, _ = evaluate_run(alone["shared"].path, "val", images="shuffled")
    assert own["val/answer_loss"] != other["val/answer_loss"]


def test_the_model_card_names_what_was_adapted(alone: Runs, recipe: Path) -> None:
    card = (alone["shared"].path / "export" / "README.md").read_text()
    assert f"on {recipe.parent / 'base'}, trained with DuoFlow" in card
    config = json.loads((alone["shared"].path / "export" / "lora_vlm" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert set(config["rank_pattern"].values()) == {2}
