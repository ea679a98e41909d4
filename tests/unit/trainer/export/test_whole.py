"""An export stands alone: it answers as its run does, wherever it lies, and refuses every byte that is not its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import BlipForImageTextRetrieval

from model.objective import Objective
from shards.errors import ConfigError, DataError, UserError
from tests.models import tiny_checkpoints
from tests.runs import Project, evaluate_run, weights
from tests.unit.trainer.inference.test_answer import finished_run
from trainer.build import assemble_model
from trainer.cli import main
from trainer.config import load_config
from trainer.config.exported import EXPORT_FILE, MANIFEST, RECIPE, model_in, read_manifest
from trainer.export.initial_weights import initialize_from
from trainer.export.manifest import verified
from trainer.export.merge import CopyRequest, copy_export
from trainer.export.preprocessing import PREPROCESSING
from trainer.export.read import load_exported, read_run
from trainer.export.write import ITM, SECOND_STREAM, export_model
from trainer.run_directory import RunDirectory


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything in it was trained."""
    return finished_run(project, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def frozen(project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run over frozen checkpoints, and the directory that those lie in."""
    home = tmp_path_factory.mktemp("frozen")
    towers = tiny_checkpoints(home / "towers")
    references = (f"model.vision={towers['vqa']}", f"model.match={towers['itm']}", f"model.answer={towers['vqa']}")
    others = ("model.freeze=[vision, match, answer]", "model.scratch.text_layers=1")
    return finished_run(project, home / "runs" / "frozen", *references, *others), home / "towers"


def files_of(export: Path) -> list[str]:
    return sorted(str(path.relative_to(export)) for path in export.rglob("*") if path.is_file())


def test_an_export_somewhere_else_says_the_same_to_the_bit(run: Path, tmp_path: Path):
    alone = shutil.copytree(run / "export", tmp_path / "elsewhere" / "exported")
    assert evaluate_run(alone, "val") == evaluate_run(run, "val")
    said = [RunDirectory(path).predictions("val").read_bytes() for path in (alone, run)]
    assert said[0] == said[1]


def test_the_manifest_names_every_file_and_the_recipe_is_complete(run: Path):
    export = run / "export"
    assert sorted(read_manifest(export).files) == [name for name in files_of(export) if name != MANIFEST]
    assert read_run(export) == read_run(run)
    assert read_manifest(export).frozen == {}


def changed(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_changed_bit_in_any_file_is_refused_in_one_line(run: Path, tmp_path: Path):
    export = shutil.copytree(run / "export", tmp_path / "exported")
    assert len(files_of(export)) > 12
    for name in files_of(export):
        before = (export / name).read_bytes()
        changed(export / name)
        with pytest.raises(UserError) as told:
            verified(export)
        assert name in str(told.value)
        assert "\n" not in str(told.value)
        (export / name).write_bytes(before)
    verified(export)


def test_a_file_that_is_gone_is_named(run: Path, tmp_path: Path):
    export = shutil.copytree(run / "export", tmp_path / "exported")
    (export / SECOND_STREAM).unlink()
    with pytest.raises(DataError, match=rf"{SECOND_STREAM}: is missing"):
        load_exported(export, read_run(export))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "blip_vqa/../../outside"])
def test_a_manifest_that_leads_out_of_the_export_is_refused(run: Path, tmp_path: Path, name: str):
    export = shutil.copytree(run / "export", tmp_path / "exported")
    tree = json.loads((export / MANIFEST).read_text())
    (export / MANIFEST).write_text(json.dumps(tree | {"files": {**tree["files"], name: "0" * 64}}))
    with pytest.raises(DataError, match=r"manifest\.json: names .*, which lies outside of the export"):
        copy_export(export, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_fusion_of_another_run_is_refused(
    run: Path, project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = finished_run(project, tmp_path / "runs" / "other", "run.seed=8")
    export = shutil.copytree(run / "export", tmp_path / "exported")
    shutil.copy(other / "export" / "fusion_encoder.safetensors", export)
    assert main(["evaluate", str(export), "--split", "val"]) == 2
    told = capsys.readouterr().err
    assert "fusion_encoder.safetensors: is not the file that was exported" in told
    assert told.count("\n") == 1


def test_exports_of_before_there_was_a_manifest_say_how_they_are_made_anew(run: Path, tmp_path: Path):
    old = shutil.copytree(run, tmp_path / "old")
    (old / "export" / MANIFEST).unlink()
    again = f"`duoflow train {old / RECIPE}` writes it anew from the best checkpoint"
    with pytest.raises(DataError, match=r"of an older duoflow, without manifest\.json") as told:
        evaluate_run(old, "val")
    assert again in str(told.value)
    (old / "export" / RECIPE).unlink()
    with pytest.raises(DataError, match=r"of an older duoflow, without config.yaml") as told:
        evaluate_run(old / "export", "val")
    assert again in str(told.value)


def test_what_nobody_trained_or_loaded_is_left_out_and_stays_so(run: Path, project: Project, tmp_path: Path):
    directory = run / "export" / ITM
    assert json.loads((directory / "config.json").read_text())["left_out"] == ["vision_proj", "text_proj"]
    children = {name.partition(".")[0] for name in load_file(directory / "model.safetensors")}
    assert children == {"vision_model", "text_encoder", "itm_head"}
    _, report = BlipForImageTextRetrieval.from_pretrained(directory, output_loading_info=True)
    assert {name.partition(".")[0] for name in report["missing_keys"]} == {"vision_proj", "text_proj"}
    over = (f"model.match={directory}", f"model.answer={run / 'export' / 'blip_vqa'}", "model.scratch.text_layers=2")
    again = finished_run(project, tmp_path / "runs" / "again", *over)
    found = load_file(again / "export" / ITM / "model.safetensors")
    assert {name.partition(".")[0] for name in found} == children


def test_two_exports_of_the_same_weights_are_the_same_files(run: Path, tmp_path: Path):
    exported = load_exported(run, read_run(run))
    towers = model_in(exported.config.model, run / "export")
    config, made = exported.config.model_copy(update={"model": towers}), []
    for number in (1, 2):
        torch.manual_seed(number)  # a generator that something was drawn from in between
        export_model(config, exported.built, weights(exported.built.objective), tmp_path / "e", step=1, metrics={})
        made.append(json.loads((tmp_path / "e" / MANIFEST).read_text())["files"])
        del made[-1][SECOND_STREAM]  # safetensors writes several values of metadata in any order
    assert made[0] == made[1]


def test_frozen_checkpoints_are_in_the_manifest_by_reference_and_digest(frozen: tuple[Path, Path]):
    run, towers = frozen
    found = read_manifest(run / "export").frozen
    assert found.keys() == {"model.vision", "model.match", "model.answer"}
    assert found["model.match"].reference == str(towers / "itm")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= found["model.match"].files.keys()


def test_another_frozen_checkpoint_than_that_of_training_is_refused(frozen: tuple[Path, Path], tmp_path: Path):
    run, towers = frozen
    moved = shutil.copytree(towers, tmp_path / "towers")
    places = [f"model.{part}={moved / name}" for part, name in (("vision", "vqa"), ("match", "itm"), ("answer", "vqa"))]
    assert load_exported(run, read_run(run, places)).config.model.vision == str(moved / "vqa")
    changed(moved / "itm" / "model.safetensors")
    with pytest.raises(DataError, match=r"^model\.match: .*itm is not what this export was trained over: model\.safet"):
        load_exported(run, read_run(run, places))
    shutil.rmtree(moved / "itm")
    with pytest.raises(
        DataError, match=r"^model\.match: .*itm is not here, and the export needs it; give model\.match="
    ):
        load_exported(run, read_run(run, places))


def test_with_frozen_weights_inside_it_needs_nothing_else(frozen: tuple[Path, Path], tmp_path: Path):
    run, towers = frozen
    expected = evaluate_run(run, "val")
    copy_export(run, tmp_path / "whole", request=CopyRequest(with_frozen=True))
    hidden = towers.rename(towers.with_name("hidden"))
    try:
        assert evaluate_run(tmp_path / "whole", "val") == expected
        with pytest.raises(DataError, match=r"model\.vision: .* is not here"):
            evaluate_run(run, "val")
    finally:
        hidden.rename(towers)
    changed(tmp_path / "whole" / "frozen" / "match" / "model.safetensors")
    with pytest.raises(DataError, match=r"frozen/match/model\.safetensors: is not the file that was exported"):
        evaluate_run(tmp_path / "whole", "val")


def test_a_hub_reference_is_pinned_to_the_commit_that_was_in_use(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commits = ("a" * 40, "b" * 40)
    repository = tmp_path / "hub" / "models--org--blip"
    for number, commit in enumerate(commits):
        made = tiny_checkpoints(tmp_path / f"made{number}")["vqa"]
        shutil.copytree(made, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[0])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    towers = ("model.vision=org/blip", "model.answer=org/blip", "model.freeze=[vision, answer]", "losses.itm=0")
    run = finished_run(project, tmp_path / "runs" / "hub", *towers, "model.scratch.text_layers=1")
    assert read_manifest(run / "export").frozen["model.vision"].revision == commits[0]
    expected = evaluate_run(run, "val")
    (repository / "refs" / "main").write_text(commits[1])
    assert evaluate_run(run / "export", "val") == expected
    assert load_exported(run, read_run(run)).config.model.vision == f"org/blip@{commits[0]}"


def test_a_card_that_was_edited_is_taken_into_a_copy(run: Path, tmp_path: Path):
    export = shutil.copytree(run / "export", tmp_path / "exported")
    (export / "README.md").write_text("# Ours\n")
    with pytest.raises(DataError, match=r"README\.md: .*takes a card that was edited into a copy"):
        verified(export)
    copy_export(export, tmp_path / "copy")
    verified(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "# Ours\n"


def test_predictions_that_lie_in_an_export_stay_out_of_its_copies(run: Path, tmp_path: Path):
    export = shutil.copytree(run / "export", tmp_path / "exported")
    evaluate_run(export, "val")
    copy_export(export, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(run / "export")


def started(recipe: Path, source: Path) -> tuple[Objective, str]:
    """What training from an export would begin with."""
    config = load_config(recipe, [f"initialize_from={source}"])
    built = assemble_model(config, scratch_tokenizer=lambda: pytest.fail("an export has its tokenizers"))
    return built.objective, initialize_from(built.objective, str(source))


def test_a_recipe_that_starts_from_an_export_types_nothing_again(run: Path, project: Project, tmp_path: Path):
    tree = json.loads(project.recipe.read_text())
    del tree["model"]
    recipe = tmp_path / "next.yaml"
    recipe.write_text(json.dumps(tree))
    objective, said = started(recipe, run / "export")
    expected = load_exported(run, read_run(run)).built.objective
    found = weights(objective)
    assert all(torch.equal(found[name], value) for name, value in weights(expected).items())
    assert said.startswith(f"weights of {sum(name.startswith('fusion.') for name in found)} of {len(found)} trained")
    assert said.endswith("; answer, match, second_stream, vision as the model section names them")


def test_a_recipe_that_names_its_own_towers_keeps_them(run: Path, project: Project, tmp_path: Path):
    towers = tiny_checkpoints(tmp_path / "towers")
    own = [f"model.vision={towers['vqa']}", f"model.answer={towers['vqa']}", f"initialize_from={run / 'export'}"]
    config = load_config(project.recipe, own)
    assert (config.model.vision, config.model.answer) == (towers["vqa"], towers["vqa"])
    assert config.model.match == str((run / "export" / ITM).resolve())


def test_an_export_of_other_sizes_is_refused(run: Path, project: Project):
    built = project.model("model.fusion.layers=3")
    with pytest.raises(ConfigError, match=r"initialize_from: .*fusion\.encoder\.fusion\S* is missing"):
        initialize_from(built.objective, str(run / "export"))


def test_preprocessing_says_what_the_model_does(run: Path):
    described = json.loads((run / "export" / PREPROCESSING).read_text())
    built = load_exported(run, read_run(run)).built
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    said = described["images"]["towers"]["vision"]
    mean, std = (torch.tensor(said[name])[:, None, None] for name in ("mean", "std"))
    assert torch.equal((pixels.float() / 255 - mean) / std, built.objective.sight.inputs(pixels))
    for part, codec in (("answer", built.answer_codec), ("match", built.match_codec)):
        told = described["texts"][part]
        ids = codec.questions(["is it red?"])[0][0]
        assert (ids[0], ids[-1]) == (told["first_id"], told["end_id"])
        assert (run / "export" / told["tokenizer"] / "tokenizer.json").is_file()


def test_tokenizers_of_frozen_towers_are_in_the_export(frozen: tuple[Path, Path]):
    run, towers = frozen
    place = json.loads((run / "export" / PREPROCESSING).read_text())["texts"]["answer"]["tokenizer"]
    kept = json.loads((run / "export" / place / "tokenizer.json").read_text())
    assert kept["model"]["vocab"] == json.loads((towers / "vqa" / "tokenizer.json").read_text())["model"]["vocab"]


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def copy(**asked: object) -> list[str]:
        return copy_export(run, tmp_path / "copy", request=CopyRequest(**asked))

    return copy


def test_a_graph_of_torch_gives_what_the_fusion_encoder_gives(
    copied: Callable[..., list[str]], run: Path, tmp_path: Path
):
    (line,) = [line for line in copied(graphs=["torch"]) if "fusion_encoder.pt2" in line]
    assert "differs from the module by" in line
    graph = torch.export.load(tmp_path / "copy" / "fusion_encoder.pt2").module()
    objective = load_exported(tmp_path / "copy", read_run(run)).built.objective
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        given = objective.image_tokens(pixels), objective.feature_map(pixels)
        torch.testing.assert_close(graph(*given), objective.fusion(*given))


def test_onnx_gives_what_the_fusion_encoder_gives(copied: Callable[..., list[str]], run: Path, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="extra onnx is not installed")
    copied(graphs=["onnx"])
    session = runtime.InferenceSession(tmp_path / "copy" / "fusion_encoder.onnx", providers=["CPUExecutionProvider"])
    objective = load_exported(tmp_path / "copy", read_run(run)).built.objective
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        given = {"tokens": objective.image_tokens(pixels), "map": objective.feature_map(pixels)}
        (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        torch.testing.assert_close(torch.from_numpy(found), objective.fusion(*given.values()), rtol=1e-4, atol=1e-5)


def test_a_repository_of_the_hub_has_its_card_and_its_command(copied: Callable[..., list[str]], tmp_path: Path):
    lines = copied(hub="me/fusion", license_id="apache-2.0")
    assert lines[-1] == f"upload it: hf upload me/fusion {tmp_path / 'copy'} . --repo-type model"
    assert "*.safetensors filter=lfs" in (tmp_path / "copy" / ".gitattributes").read_text()
    matter = (tmp_path / "copy" / "README.md").read_text().split("---\n")[1]
    assert {"license: apache-2.0", "library_name: duoflow"} <= set(matter.splitlines())
    verified(tmp_path / "copy")


@pytest.mark.parametrize("name", ["me", "me/", "a/b/c", "../x", "me/a--b", "me/ü"])
def test_no_name_of_a_repository_is_refused(copied: Callable[..., list[str]], name: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^--hub .*expected OWNER/NAME"):
        copied(hub=name)
    assert not (tmp_path / "copy").exists()


def test_what_is_neither_run_nor_export_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["answer", str(tmp_path), "--image", "x.png", "--question", "?"]) == 2
    assert "no run here, and no export" in capsys.readouterr().err
    (tmp_path / EXPORT_FILE).write_text("{}")
    assert main(["evaluate", str(tmp_path), "--split", "val"]) == 2
    assert "of an older duoflow" in capsys.readouterr().err
