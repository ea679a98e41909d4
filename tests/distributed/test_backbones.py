"""Backbones of timm in whole runs: each family as both streams at once, and one of them at every stage on two ranks.

Two launches serve all tests.
"""

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

from shards.format.index import read_index
from shards.format.tar_reader import ShardReader
from tests.backbones import FAMILIES, write_backbone
from tests.distributed.training_runs import IN_SECOND_EPOCH, Runs, launched
from tests.distributed.training_worker import Case, Fault
from tests.models import FUSION
from tests.runs import answer_photo, evaluate_run, write_recipe, write_shards
from tests.selection import STAGES, STAGES_EVERY_DAY, chosen, chosen_stages, with_slow
from trainer.engine.state_file import MODEL

pytestmark = pytest.mark.distributed

DONE, KILLED = 0, -9
SPREAD = "registers"
"""The family that is trained on two ranks: class token, registers and positions lie on the backbone itself."""
EVERY_DAY = ("vit", SPREAD, "swin", "efficientnet")
"""With a class token, with registers, channels last, and with batch statistics; `make test-slow` has the others."""
DECAY = 0.125
IN_SECOND_STEP = Fault(function=IN_SECOND_EPOCH.function, call=2, signal="SIGKILL")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_shards(tmp_path_factory.mktemp("data"))


def case(recipe: Path, out: Path, family: str, name: str, *overrides: str, fault: Fault | None = None) -> Case:
    reference = f"timm:{out / family}"
    if not (out / family).is_dir():
        write_backbone(out / family, family)
    frozen = "[vision, second_stream]" if FAMILIES[family].has_batch_statistics else "[]"
    streams = (f"model.vision={reference}", "model.second_stream=timm", f"model.second_vision={reference}")
    changes = [f"run.name={name.removesuffix('_again')}", *streams, f"model.freeze={frozen}", *overrides]
    return Case(name=name, recipe=str(recipe), overrides=changes, fault=fault)


def recipe_in(out: Path, data: dict[str, str]) -> Path:
    model = {"fusion": FUSION | {"width": 24}, "scratch": {"image_size": 32, "width": 24, "heads": 3, "text_layers": 2}}
    every = {"checkpoint": {"every_steps": 1}, "limits": {"max_steps": 2}, "validate_every": {"max_images": 2}}
    return write_recipe(out / "tiny.yaml", data, model=model, **every)


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: dict[str, str]) -> Runs:
    """Each family for two steps: as a whole, and killed in the second one and started again."""
    out = tmp_path_factory.mktemp("alone")
    recipe, cases = recipe_in(out, data), []
    for family in sorted(chosen(request, "family") | {SPREAD}):
        cases += [
            case(recipe, out, family, family),
            case(recipe, out, family, f"{family}_killed", fault=IN_SECOND_STEP),
            case(recipe, out, family, f"{family}_killed_again"),
        ]
    cases.append(case(recipe, out, SPREAD, "by_layer", f"optim.layer_decay={DECAY}"))
    return launched(out, cases, processes=1)


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: dict[str, str]) -> Runs:
    out = tmp_path_factory.mktemp("together")
    recipe = recipe_in(out, data)
    more = ("model.gradient_checkpointing=true",)
    stages = [
        case(recipe, out, SPREAD, f"zero{stage}", f"engine.policy=ds_configs/zero{stage}.json", *more)
        for stage in chosen_stages(request)
    ]
    return launched(out, stages, processes=2)


@pytest.mark.parametrize("family", with_slow(FAMILIES, EVERY_DAY))
def test_a_killed_run_goes_on_to_the_same_bits(alone: Runs, family: str):
    assert alone.codes[family] == [DONE], alone.said(family)
    assert alone.codes[f"{family}_killed"] == [KILLED]
    assert alone.codes[f"{family}_killed_again"] == [DONE], alone.said(f"{family}_killed_again")
    assert alone[f"{family}_killed"].bits("last") == alone[family].bits("last")


@pytest.mark.parametrize("family", with_slow(FAMILIES, EVERY_DAY))
def test_what_was_trained_comes_back_from_the_export(alone: Runs, family: str):
    run, frozen = alone[family], FAMILIES[family].has_batch_statistics
    weights = load_file(run.checkpoint("last") / MODEL)
    expected = {} if frozen else {"vision": "timm_vision", "second_stream": "timm_second"}
    assert {part: name for part, name in run.exported["parts"].items() if name.startswith("timm")} == expected
    for part, name in expected.items():
        prefix = {"vision": "vision.", "second_stream": "second_stream.encoder."}[part]
        saved = timm.create_model(f"local-dir:{run.directory.export / name}", pretrained=True).state_dict()
        trained = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        assert trained
        assert all(saved[key].equal(value) for key, value in trained.items())
        before = load_file(Path(alone.directory) / family / "model.safetensors")
        assert any(not before[key].equal(value) for key, value in trained.items())
    validated = json.loads(run.predictions)
    evaluate_run(run.path, "val")
    evaluated = {row["questionId"]: row for row in json.loads(run.predictions)}
    assert validated == [evaluated[row["questionId"]] for row in validated]


@pytest.mark.parametrize("family", with_slow(FAMILIES, EVERY_DAY))
def test_a_photo_gets_the_answer_that_the_split_got(alone: Runs, data: dict[str, str], family: str, tmp_path: Path):
    run = alone[family]
    predicted = {row["questionId"]: row["prediction"] for row in json.loads(run.predictions)}
    reader = ShardReader(Path(data["val"]), read_index(Path(data["val"])))
    question = next(question for question in reader.sample(0).questions if question.question_id in predicted)
    (tmp_path / "photo.jpg").write_bytes(reader.images(0)[0])
    found = answer_photo(run.path, tmp_path / "photo.jpg", question.question, overlay=tmp_path / "seen.png")
    assert found.text == predicted[question.question_id]
    assert (tmp_path / "seen.png").is_file()


def test_lower_layers_of_a_backbone_move_less_by_layer_decay(alone: Runs):
    assert alone.codes["by_layer"] == [DONE], alone.said("by_layer")
    before = load_file(Path(alone.directory) / SPREAD / "model.safetensors")

    def moved(name: str, parameter: str) -> float:
        after = load_file(alone[name].checkpoint("last") / MODEL)[f"vision.{parameter}"]
        return (after - before[parameter]).abs().max().item()

    # AdamW's first steps are as long as the learning rate, whatever the gradient: that of layer l is DECAY^(3 - l).
    for parameter, layer in (("patch_embed.proj.weight", 0), ("blocks.0.mlp.fc1.weight", 1), ("norm.weight", 2)):
        share = moved("by_layer", parameter) / moved(SPREAD, parameter)
        assert share == pytest.approx(DECAY ** (3 - layer), rel=0.3), parameter


@pytest.mark.parametrize("stage", with_slow(STAGES[1:], STAGES_EVERY_DAY))
def test_two_ranks_learn_the_same_at_every_stage(alone: Runs, together: Runs, stage: int):
    assert together.codes[f"zero{stage}"] == [DONE, DONE], together.said(f"zero{stage}")
    expected, run = alone[SPREAD], together[f"zero{stage}"]
    assert list(run.losses) == [1, 2]
    for step, losses in run.losses.items():
        assert losses == pytest.approx(expected.losses[step], rel=1e-5), step
    assert run.grad_norms == pytest.approx(expected.grad_norms, rel=1e-5)
    assert run.exported["parts"].items() >= {"vision": "timm_vision", "second_stream": "timm_second"}.items()
