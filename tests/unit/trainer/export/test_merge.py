"""A copy of an export is whole or not there, and merged adapters answer as they did beside their checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering, T5ForConditionalGeneration

from shards.errors import DataError, UserError
from tests.models import tiny_checkpoints
from tests.runs import Project, weights
from tests.t5 import HEADS, logits, t5_with_head
from tests.unit.trainer.training.checkpoint_states import full_disk
from trainer.build import assemble_model, open_split, training_tokenizer
from trainer.cli import main
from trainer.config.exported import read_manifest
from trainer.export.manifest import seal
from trainer.export.merge import copy_export
from trainer.export.write import T5, VQA, export_model
from trainer.run_directory import RunDirectory


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


def adapted_run(project: Project, path: Path, answer: str, targets: str) -> tuple[Path, torch.nn.Module]:
    """A run with trained adapters on its answer tower, and that tower."""
    lora = ("model.lora.answer.rank=2", f"model.lora.answer.targets=[{targets}]")
    vision = tiny_checkpoints(path.with_name(f"{path.name}_vision"))["itm"]
    own = (f"run.directory={path.parent}", f"run.name={path.name}", "losses.itm=0", "model.second_stream=none")
    towers = (f"model.vision={vision}", f"model.answer={answer}", "model.freeze=[vision, answer]")
    config = project.config(*own, *towers, *lora)
    directory = RunDirectory(path)
    directory.create()
    directory.write_config(config)
    built = assemble_model(config, scratch_tokenizer=lambda: training_tokenizer(config, open_split(config, "train")))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.objective.adapters["answer"].parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    export_model(config, built, weights(built.objective), directory.export, step=1, metrics={})
    return path, built.objective.tower("answer").eval()


@pytest.fixture(scope="module")
def run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    return adapted_run(project, directory / "lora", t5_with_head(directory / "base", "untied"), "q")[0]


@pytest.mark.parametrize("targets", ["q, wo", "lm_head"])
@pytest.mark.parametrize("head", HEADS)
def test_a_merged_t5_gives_the_logits_of_the_adapted_one(
    project: Project, head: str, targets: str, tmp_path: Path
) -> None:
    base = t5_with_head(tmp_path / "base", head)
    run, tower = adapted_run(project, tmp_path / "lora", base, targets)
    copy_export(run, tmp_path / "merged", merge=True)
    merged, plain = (T5ForConditionalGeneration.from_pretrained(path) for path in (tmp_path / "merged" / T5, base))
    expected = logits(tower.model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-3, atol=1e-2)
    assert not torch.allclose(logits(plain), expected, rtol=1e-1, atol=1.0)
    assert torch.equal(merged.shared.weight, plain.shared.weight)


def test_adapters_of_blips_output_layer_leave_its_embeddings_alone(project: Project, tmp_path: Path) -> None:
    base = tiny_checkpoints(tmp_path / "base")["vqa"]
    run, tower = adapted_run(project, tmp_path / "lora", base, "decoder")
    copy_export(run, tmp_path / "merged", merge=True)

    @torch.no_grad()
    def decoded(decoder: torch.nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        states = torch.randn(1, 4, 24, generator=generator)
        return decoder.eval()(torch.tensor([[5, 9, 11]]), encoder_hidden_states=states).logits

    merged, plain = (
        BlipForQuestionAnswering.from_pretrained(path).text_decoder for path in (tmp_path / "merged" / VQA, base)
    )
    torch.testing.assert_close(decoded(merged), decoded(tower.text_decoder), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(decoded(plain), decoded(tower.text_decoder), rtol=1e-1, atol=1e-1)


@pytest.mark.parametrize("merge", [False, True])
def test_a_place_that_cannot_be_is_refused_in_one_line(
    run: Path, merge: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    flags = ["--merge"] if merge else []
    for out in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y", tmp_path / ("n" * 300)):
        assert main(["export", str(run), "--out", str(out), *flags]) == 2
        message = capsys.readouterr().err
        assert f"--out {out}: " in message
        assert message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("merge", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing(run: Path, merge: bool, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in RunDirectory(run).export.rglob("*.safetensors")]
    room = max(sizes) if merge else max(sizes) - 1
    with (
        full_disk(room),
        pytest.raises(UserError, match=r"--out .*out: cannot be written \(.*File too large.*\); free some") as error,
    ):
        copy_export(run, tmp_path / "out", merge=merge)
    assert "\n" not in str(error.value)
    assert str(error.value).count(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_adapters_are_named_and_nothing_is_left(project: Project, tmp_path: Path) -> None:
    base = t5_with_head(tmp_path / "base", "tied")
    run, _ = adapted_run(project, tmp_path / "runs" / "lora", base, "q")
    export = RunDirectory(run).export
    (export / "lora_answer" / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"lora_answer/adapter_model\.safetensors: is not the file that was exported"):
        copy_export(run, tmp_path / "copies" / "out", merge=True)
    seal(export, read_manifest(export).frozen)  # as if it had been written so
    with pytest.raises(DataError, match=rf"lora_answer: adapters that do not load into {base} \(SafetensorError: "):
        copy_export(run, tmp_path / "copies" / "out", merge=True)
    assert list((tmp_path / "copies").iterdir()) == []
