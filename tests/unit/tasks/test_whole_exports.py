"""What is no fusion stands alone too: a reader, a page retrieval, a vision-language model; and what starts from it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from model.objective import Objective
from shards.errors import ConfigError
from tests.documents import shared_vlm
from tests.reader import reader_recipe, write_documents
from tests.retrieval import shared_checkpoint
from tests.runs import Project, evaluate_run, weights, write_recipe
from tests.task_corpora import task_recipe, write_task
from trainer.build import AnyBuilt, assemble_model
from trainer.cli import main
from trainer.config import RunConfig, load_config
from trainer.config.exported import read_export, read_manifest
from trainer.export.initial_weights import initialize_from
from trainer.export.merge import CopyRequest, copy_export
from trainer.export.read import load_exported, read_run
from trainer.export.write import export_model
from trainer.run_directory import RunDirectory

LORA = ("model.freeze=[answer]", "model.lora.answer.rank=2", "model.lora.answer.targets=[q,v]")
ADAPTED = (
    "retrieval.freeze=[text, vision]",
    *(f"retrieval.lora.{tower}.rank=2" for tower in ("text", "vision")),
    *(f"retrieval.lora.{tower}.targets=[q_proj, v_proj]" for tower in ("text", "vision")),
)


def not_asked_for() -> None:
    pytest.fail("an export brings its own tokenizers")


def trained(recipe: Path, directory: Path, *overrides: str) -> tuple[Path, AnyBuilt]:
    """A run that has moved every trained weight, and its model."""
    own = (f"run.directory={directory}", "run.name=run")
    config = load_config(recipe, (*overrides, *own))
    built = assemble_model(config, scratch_tokenizer=not_asked_for)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.objective.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    run = RunDirectory.of(config)
    run.create()
    run.write_config(config)
    export_model(config, built, weights(built.objective), run.export, step=3, metrics={})
    built.objective.eval()
    return run.path, built


def started(recipe: Path, source: Path, *overrides: str) -> tuple[RunConfig, Objective, str]:
    config = load_config(recipe, (*overrides, f"initialize_from={source}"))
    objective = assemble_model(config, scratch_tokenizer=not_asked_for).objective
    return config, objective, initialize_from(objective, str(source))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    return reader_recipe(directory / "own.yaml", write_documents(directory))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return write_task(tmp_path_factory.mktemp("drawn"), "mpdocvqa")


@pytest.fixture(scope="module")
def pages(drawn: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    sections = {"batch": {"visits": 4, "micro_visits": 2}, "early_stopping": {"metric": "val/hit@1"}}
    model = {"retrieval": shared_checkpoint("clip")}
    return write_recipe(directory / "own.yaml", drawn, task="mpdocvqa_retrieval", model=model, **sections)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Project.write(tmp_path_factory.mktemp("questions")).recipe
    tree = {"model": {"vlm": shared_vlm()}, "vlm": {"language": {"rank": 2}}}
    data = load_config(recipe).data
    return write_recipe(recipe.with_name("vlm.yaml"), {"train": data.train, "val": data.val}, **tree)


@pytest.mark.parametrize("overrides", [(), LORA, LORA[:1]], ids=["whole", "lora", "frozen"])
def test_a_reader_answers_wherever_its_export_lies_and_starts_another_run(
    documents: Path, tmp_path: Path, overrides: tuple[str, ...]
):
    run, built = trained(documents, tmp_path / "runs", *overrides)
    alone = shutil.copytree(run / "export", tmp_path / "alone")
    assert evaluate_run(alone, "val") == evaluate_run(run, "val")
    assert set(read_manifest(alone).frozen) == ({"model.answer"} if overrides else set())
    _, objective, said = started(documents, alone, *overrides)
    assert same(weights(objective), weights(built.objective)), said


def test_adapters_of_a_reader_merge_into_its_t5(documents: Path, tmp_path: Path):
    run, _ = trained(documents, tmp_path / "runs", *LORA)
    copy_export(run, tmp_path / "merged", merge=True)
    assert read_export(tmp_path / "merged")["parts"] == {"answer": "t5"}
    assert read_export(tmp_path / "merged")["adapters"] == {}
    assert read_manifest(tmp_path / "merged").frozen == {}
    assert not (tmp_path / "merged" / "lora_answer").exists()
    (plain, _), (merged, _) = evaluate_run(run, "val"), evaluate_run(tmp_path / "merged", "val")
    assert merged == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("overrides", [(), ADAPTED], ids=["whole", "lora"])
def test_a_retrieval_starts_another_run_with_what_it_has_learnt(
    pages: Path, tmp_path: Path, overrides: tuple[str, ...]
):
    run, _ = trained(pages, tmp_path / "runs", *overrides)
    alone = shutil.copytree(run / "export", tmp_path / "alone")
    expected, _ = evaluate_run(run, "val")
    assert evaluate_run(alone, "val")[0] == expected
    _, objective, said = started(pages, alone, *overrides)
    assert objective.temperature is None or float(objective.temperature().detach()) > 0
    found = load_exported(alone, read_run(alone)).built.objective
    for name in ("text", "vision"):
        for (path, value), (_, other) in zip(_plain(objective.tower(name)), _plain(found.tower(name)), strict=True):
            torch.testing.assert_close(value, other, msg=f"{name}.{path}: {said}")


def _plain(tower: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Without adapters, which start anew."""
    return [(name, value) for name, value in tower.named_parameters() if "lora_" not in name]


def test_an_adapter_of_a_vision_language_model_stands_alone_merges_and_starts_another_run(
    questions: Path, tmp_path: Path
):
    run, built = trained(questions, tmp_path / "runs")
    alone = shutil.copytree(run / "export", tmp_path / "alone")
    expected = evaluate_run(run, "val")
    assert evaluate_run(alone, "val") == expected
    copy_export(alone, tmp_path / "inside", request=CopyRequest(with_frozen=True))
    assert evaluate_run(tmp_path / "inside", "val") == expected
    copy_export(alone, tmp_path / "merged", merge=True)
    assert evaluate_run(tmp_path / "merged", "val")[0] == pytest.approx(expected[0], rel=1e-3)
    _, objective, said = started(questions, alone)
    assert same(weights(objective), weights(built.objective)), said


def test_a_head_over_pages_goes_with_its_adapter_and_says_which_photo_shows_the_answer(
    drawn: Mapping[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = task_recipe(tmp_path / "own.yaml", "mpdocvqa", drawn)
    run, built = trained(recipe, tmp_path / "runs")
    expected = evaluate_run(run, "val")
    assert {"val/page_accuracy", "val/page_loss", "val/long_hit@1"} <= set(expected[0])
    copy_export(run, tmp_path / "merged", merge=True)
    assert evaluate_run(tmp_path / "merged", "val")[0] == pytest.approx(expected[0], rel=1e-3)
    _, objective, said = started(recipe, run / "export")
    assert same(weights(objective), weights(built.objective)), said
    photos = [str(tmp_path / f"p{number}.png") for number in range(3)]
    for number, photo in enumerate(photos):
        Image.new("RGB", (40, 52), (90 * number, 50, 200)).save(photo)
    capsys.readouterr()
    on = set()
    for question in ("Which number?", "What stands on page 3?", "?", "How many pages are blue?"):
        assert main(["answer", str(run), "--question", question, "--image", *photos]) == 0
        *_, where = capsys.readouterr().out.strip().rpartition("  on ")
        on.add(where)
    assert on <= set(photos)
    assert main(["answer", str(run), "--question", "Which number?", "--image", photos[0]]) == 0
    assert "  on " not in capsys.readouterr().out


def test_an_export_of_another_kind_is_refused(documents: Path, questions: Path, tmp_path: Path):
    run, _ = trained(documents, tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"initialize_from: .*it holds nothing that this model trains"):
        started(questions, run / "export")
    with pytest.raises(
        ConfigError, match=r"--onnx, --torch-export: write a fusion encoder, and .* is a reader of words"
    ):
        copy_export(run, tmp_path / "copy", request=CopyRequest(graphs=["torch"]))
