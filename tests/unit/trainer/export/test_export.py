"""An export gives back the model that was exported, is never half there, and is mended from the best checkpoint."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from peft import AutoPeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

from model.build import BuiltModel
from model.objective import EvaluationOutput
from model.towers.checkpoint_files import T5_ARCHITECTURES
from model.towers.hub import load_pretrained
from shards.errors import DataError
from tests.models import random_batch, tiny_t5
from tests.runs import Project, engine_state, weights
from tests.t5 import HEADS, logits, t5_with_head
from tests.unit.trainer.training.checkpoint_states import full_disk, kill_at_each_touch_of_the_disk
from trainer.build import FUSION_FILE, assemble_model, open_split, training_tokenizer
from trainer.config import RunConfig
from trainer.config.exported import MANIFEST
from trainer.engine.distributed import World
from trainer.export.manifest import verified
from trainer.export.write import (
    EXPORT_FILE,
    ITM,
    SECOND_STREAM,
    T5,
    VQA,
    export_model,
    exported_model_config,
    load_exported_adapters,
    load_fusion,
    read_export,
)
from trainer.run_directory import RunDirectory
from trainer.training.checkpoints import Checkpoints
from trainer.training.early_stopping import EarlyStopping
from trainer.training.saving import repair_export
from trainer.training.state import Run, TrainState

EVERYTHING = ("vision", "second_stream", "match", "answer")
WORDS = "bert.embeddings.word_embeddings"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def towers(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a run that trained everything, to whose parts other recipes refer."""
    directory = tmp_path_factory.mktemp("towers") / "export"
    built = project.model()
    export_model(project.config(), built, weights(built.objective), directory, step=1, metrics={})
    return directory


def recipe_over(
    project: Project, towers: Path, freeze: tuple[str, ...], *, seed: int = 3, more: Sequence[str] = ()
) -> RunConfig:
    return project.config(
        f"run.seed={seed}",
        f"model.vision={towers / VQA}",
        f"model.answer={towers / VQA}",
        f"model.match={towers / ITM}",
        f"model.efficient_sam.checkpoint={towers / SECOND_STREAM}",
        f"model.freeze=[{', '.join(freeze)}]",
        *more,
    )


def project_tokenizer(project: Project) -> Callable[[], PreTrainedTokenizerBase]:
    return lambda: training_tokenizer(project.config(), open_split(project.config(), "train"))


def not_asked_for() -> None:
    pytest.fail("an export brings its own tokenizers")


def trained(built: BuiltModel) -> BuiltModel:
    """The model after its trained parts, and no others, have changed a lot."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.objective.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return built


def answers(built: BuiltModel) -> EvaluationOutput:
    return built.objective.eval().evaluate(random_batch((2, 3)))


def assert_same_answers(one: BuiltModel, other: BuiltModel) -> None:
    left, right = answers(one), answers(other)
    assert torch.equal(left.sums, right.sums)
    assert torch.equal(left.predictions["answer"], right.predictions["answer"])


@pytest.mark.parametrize(
    "freeze",
    [(), ("vision",), ("second_stream",), ("vision", "second_stream"), ("match", "answer"), EVERYTHING],
    ids=lambda freeze: "+".join(freeze) or "nothing",
)
def test_an_export_gives_the_same_answers_whatever_was_frozen(
    project: Project, towers: Path, freeze: tuple[str, ...], tmp_path: Path
):
    config = recipe_over(project, towers, freeze)
    built = trained(assemble_model(config, scratch_tokenizer=not_asked_for))
    export_model(config, built, weights(built.objective), tmp_path / "export", step=9, metrics={})
    model = exported_model_config(config.model, tmp_path / "export")
    again = assemble_model(recipe_over(project, towers, freeze, seed=77), model=model, scratch_tokenizer=not_asked_for)
    load_fusion(again.objective, tmp_path / "export")
    assert_same_answers(again, built)
    assert set(read_export(tmp_path / "export")["parts"]) == set(EVERYTHING) - set(freeze)


@pytest.mark.parametrize("freeze", [("vision", "second_stream"), ("match", "second_stream"), ("vision", "answer")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_half_precision_has_rounded_is_exported_as_it_was_loaded(
    project: Project, towers: Path, freeze: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
):
    config = recipe_over(project, towers, freeze)
    built = trained(assemble_model(config, scratch_tokenizer=not_asked_for))
    learnt = weights(built.objective)  # a checkpoint has these in full precision
    built.objective.to(device=torch.device("cpu"), dtype=dtype)
    built.objective.place_frozen(torch.device("cpu"), dtype)
    export_model(config, built, learnt, tmp_path / "export", step=9, metrics={})
    compared = 0
    for name in (VQA, ITM):
        if not (tmp_path / "export" / name).is_dir():
            continue
        found, loaded = (load_file(home / name / "model.safetensors") for home in (tmp_path / "export", towers))
        assert found.keys() == loaded.keys()
        for key, value in found.items():
            part = "vision" if key.startswith("vision_model.") else "match" if name == ITM else "answer"
            if part in freeze:
                compared += 1
                assert torch.equal(value, loaded[key]), f"{name} {key}"
    assert compared > 10


@pytest.mark.parametrize(
    ("overrides", "parts", "adapters"),
    [
        (("model.lora.match.rank=2", "model.lora.match.targets=[query]"), (), ("match",)),
        (("model.lora.answer.rank=2", "model.lora.answer.targets=[key, dense]"), (), ("answer",)),
        (("model.answer=T5", "model.lora.answer.rank=2", "model.lora.answer.targets=[q]"), (), ("answer",)),
        (("model.answer=T5", "model.freeze=[second_stream, match]"), ("answer", "vision"), ()),
        (("model.answer=T5", "losses.itm=0", "model.freeze=[second_stream]"), ("answer", "vision"), ()),
        (("model.second_stream=blip", "model.freeze=[vision, match, answer]"), ("second_stream",), ()),
    ],
    ids=("lora on matching", "lora on answers", "lora on t5", "t5", "t5 alone", "second blip"),
)
def test_adapters_and_other_towers_come_back_too(
    project: Project,
    towers: Path,
    overrides: tuple[str, ...],
    parts: tuple[str, ...],
    adapters: tuple[str, ...],
    tmp_path: Path,
):
    t5 = tiny_t5(tmp_path / "t5") if "model.answer=T5" in overrides else ""
    config = recipe_over(project, towers, EVERYTHING, more=[text.replace("T5", t5) for text in overrides])
    built = trained(assemble_model(config, scratch_tokenizer=project_tokenizer(project)))
    export_model(config, built, weights(built.objective), tmp_path / "export", step=9, metrics={})
    model = exported_model_config(config.model, tmp_path / "export")
    again = assemble_model(config, model=model, scratch_tokenizer=not_asked_for)
    load_fusion(again.objective, tmp_path / "export")
    load_exported_adapters(again.objective, tmp_path / "export")
    assert_same_answers(again, built)
    exported = read_export(tmp_path / "export")
    assert set(exported["parts"]) == set(parts)
    assert set(exported["adapters"]) == set(adapters)


@pytest.mark.parametrize("trained", [("vision",), ("match",), ("answer",), ("vision", "match", "answer"), ()])
def test_a_vision_tower_of_other_sizes_than_those_of_the_text_towers_comes_back(
    project: Project, towers: Path, tmp_path: Path, trained: tuple[str, ...]
):
    sizes = BlipConfig.from_pretrained(towers / ITM).to_dict()
    sizes["vision_config"]["hidden_size"] *= 2
    BlipForImageTextRetrieval(BlipConfig.from_dict(sizes)).save_pretrained(tmp_path / "wide")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(towers / ITM / file, tmp_path / "wide")
    freeze = tuple(part for part in EVERYTHING if part not in trained)
    config = recipe_over(project, towers, freeze, more=[f"model.vision={tmp_path / 'wide'}"])
    built = assemble_model(config, scratch_tokenizer=lambda: None)
    moved = {name: value + 0.01 for name, value in weights(built.objective).items()}
    export_model(config, built, moved, tmp_path / "export", step=1, metrics={})
    model = exported_model_config(config.model, tmp_path / "export")
    again = assemble_model(config, model=model, scratch_tokenizer=lambda: None).objective
    load_fusion(again, tmp_path / "export")
    found = weights(again)
    assert {name: bool(torch.equal(found[name], value)) for name, value in moved.items()} == dict.fromkeys(moved, True)


def test_parts_from_scratch_are_exported_with_their_tokenizer(project: Project, tmp_path: Path):
    built = trained(project.model())
    export_model(project.config(), built, weights(built.objective), tmp_path / "export", step=9, metrics={})
    model = exported_model_config(project.config().model, tmp_path / "export")
    again = assemble_model(project.config(), model=model, scratch_tokenizer=not_asked_for)
    load_fusion(again.objective, tmp_path / "export")
    assert_same_answers(again, built)


def test_what_the_weights_were_at_export_counts_and_not_the_module(project: Project, tmp_path: Path):
    """Under ZeRO-3 and half precision, a module's own tensors are not its weights."""
    built = trained(project.model())
    full = weights(built.objective)
    expected = answers(built)
    with torch.no_grad():
        for parameter in built.objective.parameters():
            parameter.zero_()
    export_model(project.config(), built, full, tmp_path / "export", step=9, metrics={})
    model = exported_model_config(project.config().model, tmp_path / "export")
    again = assemble_model(project.config(), model=model, scratch_tokenizer=not_asked_for)
    load_fusion(again.objective, tmp_path / "export")
    assert torch.equal(answers(again).sums, expected.sums)


def test_exported_towers_load_with_transformers_alone(towers: Path):
    for directory, kind in ((VQA, BlipForQuestionAnswering), (ITM, BlipForImageTextRetrieval)):
        _, report = kind.from_pretrained(towers / directory, output_loading_info=True)
        left_out = json.loads((towers / directory / "config.json").read_text()).get("left_out", [])
        assert {name.partition(".")[0] for name in report["missing_keys"]} == set(left_out)
        assert not report["unexpected_keys"]


def test_metrics_that_json_does_not_have_are_null_in_the_export(project: Project, tmp_path: Path):
    built = project.model()
    metrics = {"val/loss": float("nan"), "val/accuracy": 0.25}
    export_model(project.config(), built, weights(built.objective), tmp_path / "export", step=9, metrics=metrics)
    assert read_export(tmp_path / "export")["metrics"] == {"val/loss": None, "val/accuracy": 0.25}
    assert "| val/accuracy | 0.2500 |" in (tmp_path / "export" / "README.md").read_text()


@pytest.mark.parametrize(("content", "said"), [(None, "no export"), (b"{", "not readable")])
def test_a_missing_or_damaged_export_is_named(tmp_path: Path, content: bytes | None, said: str):
    if content is not None:
        (tmp_path / EXPORT_FILE).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_export(tmp_path)


def test_the_fusion_encoder_of_another_recipe_is_refused(project: Project, towers: Path):
    with pytest.raises(DataError, match=rf"{FUSION_FILE}: does not load into this recipe's fusion encoder"):
        load_fusion(project.model("model.fusion.layers=3").objective, towers)


def frozen_export(project: Project, towers: Path, directory: Path, step: int) -> None:
    """A small one: the fusion encoder alone."""
    config = recipe_over(project, towers, EVERYTHING)
    built = assemble_model(config, scratch_tokenizer=not_asked_for)
    export_model(config, built, weights(built.objective), directory, step=step, metrics={})


def test_a_kill_at_any_moment_leaves_a_whole_export_or_none(project: Project, towers: Path, tmp_path: Path):
    directory = tmp_path / "export"
    config = recipe_over(project, towers, EVERYTHING)
    built = assemble_model(config, scratch_tokenizer=not_asked_for)

    def export(step: int) -> None:
        export_model(config, built, weights(built.objective), directory, step=step, metrics={})

    export(1)
    seen = set()
    for _ in kill_at_each_touch_of_the_disk(lambda: export(2)):
        if directory.exists():
            load_fusion(built.objective, directory)
            seen.add(read_export(directory)["step"])
        export(1)
        assert [path.name for path in tmp_path.iterdir()] == ["export"], "the next export clears up"
    assert 1 in seen
    assert read_export(directory)["step"] == 2


def test_a_full_disk_leaves_the_old_export(project: Project, towers: Path, tmp_path: Path):
    frozen_export(project, towers, tmp_path / "export", step=1)
    with full_disk(2_000), pytest.raises(Exception, match=r"(?i)large|write|I/O"):
        frozen_export(project, towers, tmp_path / "export", step=2)
    assert read_export(tmp_path / "export")["step"] == 1


@pytest.fixture
def finished(project: Project, tmp_path: Path) -> tuple[Run, TrainState]:
    """A run whose best checkpoint is of step 5, without an export: its process died between the two."""
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    checkpoints = Checkpoints(directory.checkpoints, World())
    built = trained(project.model())
    progress = {"global_step": 5, "metrics": {"val/accuracy": 0.5}}
    checkpoints.publish("best", checkpoints.save("step5", engine_state(built.objective), progress))
    run = SimpleNamespace(
        config=project.config(), built=built, directory=directory, checkpoints=checkpoints, world=World(), is_main=True
    )
    names = built.objective.sum_names
    return run, TrainState(early_stopping=EarlyStopping(), sum_names=names, global_step=8, best_step=5)


def test_a_missing_export_is_made_from_the_best_checkpoint(finished: tuple[Run, TrainState]):
    run, state = finished
    expected = answers(run.built)
    with torch.no_grad():
        for parameter in run.built.objective.parameters():
            parameter.zero_()
    repair_export(run, state)
    export = read_export(run.directory.export)
    assert (export["step"], export["metrics"]) == (5, {"val/accuracy": 0.5})
    model = exported_model_config(run.config.model, run.directory.export)
    again = assemble_model(run.config, model=model, scratch_tokenizer=not_asked_for)
    load_fusion(again.objective, run.directory.export)
    assert torch.equal(answers(again).sums, expected.sums)


def test_an_export_of_an_older_step_is_replaced_and_the_right_one_is_left(finished: tuple[Run, TrainState]):
    run, state = finished
    export_model(run.config, run.built, weights(run.built.objective), run.directory.export, step=3, metrics={})
    repair_export(run, state)
    path = run.directory.export / EXPORT_FILE
    assert json.loads(path.read_text())["step"] == 5
    made = path.stat().st_ino
    repair_export(run, state)
    assert path.stat().st_ino == made


@pytest.mark.parametrize("name", [MANIFEST, FUSION_FILE])
def test_an_export_that_is_not_whole_is_written_anew(finished: tuple[Run, TrainState], name: str):
    run, state = finished
    repair_export(run, state)
    before = read_export(run.directory.export)
    (run.directory.export / name).unlink()
    repair_export(run, state)
    assert name == MANIFEST or name in verified(run.directory.export).files
    assert read_export(run.directory.export) == before
    load_fusion(run.built.objective, run.directory.export)


def test_a_damaged_best_checkpoint_is_named_when_its_export_is_missing(finished: tuple[Run, TrainState]):
    run, state = finished
    (run.directory.checkpoints / "step5" / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"step5/model\.safetensors: damaged checkpoint"):
        repair_export(run, state)


@pytest.mark.parametrize("head", HEADS)
def test_a_trained_t5_keeps_its_own_output_layer(project: Project, towers: Path, head: str, tmp_path: Path):
    freeze = ("vision", "second_stream", "match")
    config = recipe_over(project, towers, freeze, more=[f"model.answer={t5_with_head(tmp_path / 't5', head)}"])
    built = trained(assemble_model(config, scratch_tokenizer=not_asked_for))
    export_model(config, built, weights(built.objective), tmp_path / "export", step=9, metrics={})
    expected, path = logits(built.objective.tower("answer").model), tmp_path / "export" / T5
    for again in (T5ForConditionalGeneration.from_pretrained(path), load_pretrained(str(path), T5_ARCHITECTURES).model):
        assert torch.equal(logits(again), expected)
        assert torch.equal(again.lm_head.weight, again.shared.weight) == (head == "tied")
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] == (head == "tied")


@pytest.mark.parametrize("trained_parts", [("answer",), ("vision",)])
def test_a_blip_keeps_an_output_layer_of_its_own(
    project: Project, towers: Path, trained_parts: tuple[str, ...], tmp_path: Path
):
    shutil.copytree(towers / VQA, tmp_path / "vqa")
    state, name = load_file(tmp_path / "vqa" / "model.safetensors"), "text_decoder.cls.predictions.decoder.weight"
    generator = torch.Generator().manual_seed(9)
    state[name] = torch.randn(state[name.replace("cls.predictions.decoder", WORDS)].shape, generator=generator)
    save_file(state, tmp_path / "vqa" / "model.safetensors", metadata={"format": "pt"})
    freeze = tuple(part for part in EVERYTHING if part not in trained_parts)
    config = recipe_over(project, towers, freeze, more=[f"model.answer={tmp_path / 'vqa'}"])
    built = trained(assemble_model(config, scratch_tokenizer=not_asked_for))
    export_model(config, built, weights(built.objective), tmp_path / "export", step=9, metrics={})
    model = exported_model_config(config.model, tmp_path / "export")
    again = assemble_model(config, model=model, scratch_tokenizer=not_asked_for)
    load_fusion(again.objective, tmp_path / "export")
    assert_same_answers(again, built)
    found = BlipForQuestionAnswering.from_pretrained(tmp_path / "export" / VQA).text_decoder.state_dict()
    for name, value in built.objective.tower("answer").text_decoder.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("revision", [None, "abc123"])
def test_adapters_over_a_pinned_base_name_it_as_peft_does(
    project: Project, towers: Path, tmp_path: Path, revision: str | None, monkeypatch: pytest.MonkeyPatch
):
    """The base lies in the hub's cache alone; PEFT and this code's own loader find it there."""
    repository = tmp_path / "hub" / "models--org--t5"
    commit = revision or "f" * 40
    tiny_t5(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / (revision or "main")).write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    reference = f"org/t5@{revision}" if revision else "org/t5"
    adapters = ("model.lora.answer.rank=2", "model.lora.answer.targets=[q]")
    config = recipe_over(project, towers, EVERYTHING, more=[f"model.answer={reference}", *adapters])
    built = trained(assemble_model(config, scratch_tokenizer=not_asked_for))
    export_model(config, built, weights(built.objective), tmp_path / "export", step=9, metrics={})
    expected, directory = logits(built.objective.tower("answer").model), tmp_path / "export" / "lora_answer"
    saved = json.loads((directory / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == ("org/t5", revision)
    torch.testing.assert_close(logits(AutoPeftModel.from_pretrained(directory)), expected)
    again = assemble_model(config, scratch_tokenizer=not_asked_for)
    load_exported_adapters(again.objective, tmp_path / "export")
    assert torch.equal(logits(again.objective.tower("answer").model), expected)
