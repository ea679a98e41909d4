"""What a run's export is asked: a photo and a question, a split through PNP-VQA, a copy with merged adapters."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForImageTextRetrieval, T5ForConditionalGeneration

from model.config import LoraParts
from shards.errors import ConfigError, UserError
from tests.models import tiny_captioner, tiny_t5
from tests.runs import Project, weights
from trainer.answer import answer_photo
from trainer.build import assemble_model, open_split, training_tokenizer
from trainer.cli import main
from trainer.evaluate import evaluate_run
from trainer.export import export_model
from trainer.exported import read_run
from trainer.merge import copy_export
from trainer.run_directory import RunDirectory

QUESTION = "Is there a red square?"
SMALL = (
    "pnp.captions.num_captions=2",
    "pnp.captions.num_patches=3",
    "pnp.captions.prompt=the ",
    "pnp.max_answer_tokens=4",
)


def finished_run(project: Project, path: Path, *overrides: str) -> Path:
    """A run directory as training leaves it, with the weights that the seed gives."""
    own = (f"run.directory={path.parent}", f"run.name={path.name}", "model.scratch.text_layers=2")
    config = project.config(*own, *overrides)
    directory = RunDirectory(path)
    directory.create()
    directory.write_config(config)
    built = assemble_model(config, scratch_tokenizer=lambda: training_tokenizer(config, open_split(config, "train")))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.objective.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    export_model(config, built, weights(built.objective), directory.export, step=1, metrics={})
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(project, tmp_path_factory.mktemp("runs") / "direct")


@pytest.fixture(scope="module")
def pnp(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name a captioner and a reader."""
    directory = tmp_path_factory.mktemp("pnp")
    captioner, reader = tiny_captioner(directory / "captioner"), tiny_t5(directory / "t5")
    return [f"pnp.captioner={captioner}", f"pnp.reader={reader}", *SMALL]


def given(pipeline: str, pnp: list[str]) -> list[str]:
    return pnp if pipeline == "pnp" else []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    colors = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photo_gets_the_answer_that_the_split_gets(run: Path, project: Project, tmp_path: Path) -> None:
    """The image of a sample and its question, handed in as a photo."""
    evaluate_run(run, "val")
    predicted = {
        row["questionId"]: row["prediction"] for row in json.loads(RunDirectory(run).predictions("val").read_text())
    }
    reader = open_split(project.config(), "val").reader
    for image in range(3):
        (tmp_path / "photo.jpg").write_bytes(reader.image_bytes(image))
        for question in reader.sample(image).questions:
            found = answer_photo(run, tmp_path / "photo.jpg", question.question)
            assert found.text == predicted[question.question_id]
            assert 0.0 < found.confidence <= 1.0


@pytest.mark.parametrize("pipeline", ["direct", "pnp"])
def test_the_overlay_is_a_picture_of_the_photo_with_the_answer(
    run: Path, pnp: list[str], photo: Path, pipeline: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    found = answer_photo(run, photo, QUESTION, overlay=out, pipeline=pipeline, overrides=given(pipeline, pnp))
    drawn = Image.open(out)
    assert drawn.width >= 60
    assert drawn.height > drawn.width * 40 / 60
    assert bool(found.captions) == (pipeline == "pnp")


@pytest.mark.parametrize("question", [QUESTION, "红色的方块在哪里?", "x" * 10_000, "is there\x00 a\x07 red\nsquare?"])
def test_any_question_gets_an_answer(run: Path, pnp: list[str], photo: Path, question: str) -> None:
    for pipeline in ("direct", "pnp"):
        found = answer_photo(run, photo, question, pipeline=pipeline, overrides=given(pipeline, pnp))
        assert isinstance(found.text, str)


@pytest.mark.parametrize(("mode", "size"), [("L", (9, 9)), ("CMYK", (30, 8)), ("RGBA", (1, 1)), ("I;16", (20, 20))])
def test_photos_of_any_kind_are_read(run: Path, mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    Image.new(mode, size).save(path)
    answer_photo(run, path, QUESTION, overlay=tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").size > (1, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--question", ""], "question: empty"),
        (["--image", "nowhere.png"], "nowhere.png: cannot be read"),
        (["--overlay", "out.tar"], "out.tar: ends with '.tar'; expected .png"),
        (["optim.lr=1"], "optim.lr=1: is settled by the run"),
        (["model.guidance.block=0"], "model.guidance.block=0: has no effect here"),
        (["--overlay", "photo.png"], "photo.png: is the photo itself"),
        (["--overlay", "photo.png/out.png"], "photo.png cannot be made"),
        (["--pipeline", "pnp"], "pnp.captioner: is not set"),
        (["model.guidance.block=5", "--overlay", "out.png"], "model.guidance.block: 5"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_code_2(
    run: Path, photo: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["answer", str(run), "--image", str(photo), "--question", QUESTION, *arguments]
    assert main(given) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not list(tmp_path.glob("out.*"))


def test_the_answer_verb_prints_answer_and_probability(run: Path, photo: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["answer", str(run), "--image", str(photo), "--question", QUESTION]) == 0
    found = answer_photo(run, photo, QUESTION)
    assert capsys.readouterr().out == f"{found.text}  ({100 * found.confidence:.1f} %)\n"


def test_pnp_answers_a_split_and_leaves_the_direct_predictions_alone(run: Path, pnp: list[str]) -> None:
    evaluate_run(run, "val")
    direct = RunDirectory(run).predictions("val").read_bytes()
    metrics, counts = evaluate_run(run, "val", pipeline="pnp", overrides=pnp)
    assert counts["val/count"] == 25
    assert set(metrics) >= {"val/accuracy", "val/binary", "val/open"}
    rows = json.loads(RunDirectory(run).predictions("val.pnp").read_text())
    assert len(rows) == 25
    assert RunDirectory(run).predictions("val").read_bytes() == direct
    with pytest.raises(ConfigError, match=r"batch\.micro_visits=1: is settled by the run"):
        read_run(run, ["batch.micro_visits=1"])
    with pytest.raises(ConfigError, match=r"pnp\.captioner=.*: has no effect here; what can be given begins with"):
        evaluate_run(run, "val", overrides=pnp)


def test_a_split_that_the_recipe_lacks_can_be_named_later(run: Path, project: Project) -> None:
    metrics, _ = evaluate_run(run, "val")
    elsewhere, _ = evaluate_run(run, "testdev", overrides=[f"data.testdev={project.config().data.val}"])
    assert elsewhere["testdev/accuracy"] == metrics["val/accuracy"]


def test_an_export_from_before_there_were_adapters_is_used_and_copied(run: Path, photo: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    content = json.loads((old / "export" / "export.json").read_text())
    del content["adapters"]
    (old / "export" / "export.json").write_text(json.dumps(content))
    assert answer_photo(old, photo, QUESTION) == answer_photo(run, photo, QUESTION)
    copy_export(old, tmp_path / "copy", merge=True)
    assert (tmp_path / "copy" / "export.json").is_file()


def test_a_run_without_a_matching_tower_has_no_heatmap_and_says_so(
    project: Project, photo: Path, tmp_path: Path
) -> None:
    run = finished_run(project, tmp_path / "answers", "losses.itm=0")
    assert answer_photo(run, photo, QUESTION).text is not None
    with pytest.raises(ConfigError, match=r"losses\.itm: is 0 in this run"):
        answer_photo(run, photo, QUESTION, overlay=tmp_path / "out.png")
    matching = finished_run(
        project, tmp_path / "matching", "losses.answer=0", "early_stopping.metric=val/loss", "early_stopping.mode=min"
    )
    with pytest.raises(ConfigError, match=r"losses\.answer: is 0 in this run.*--pipeline pnp"):
        answer_photo(matching, photo, QUESTION)


@pytest.fixture(scope="module")
def adapted(project: Project, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters on BLIP's matching tower and on T5, between frozen towers of another run."""
    directory, export = tmp_path_factory.mktemp("adapted"), RunDirectory(run).export
    return finished_run(
        project,
        directory / "lora",
        f"model.vision={export / 'blip_itm'}",
        f"model.match={export / 'blip_itm'}",
        f"model.answer={tiny_t5(directory / 't5')}",
        f"model.efficient_sam.checkpoint={export / 'efficient_sam.safetensors'}",
        "model.freeze=[vision, second_stream, match, answer]",
        *("model.lora.match.rank=2", "model.lora.match.targets=[query]"),
        *("model.lora.answer.rank=2", "model.lora.answer.targets=[q, v]"),
    )


def test_merged_adapters_give_plain_checkpoints_that_answer_alike(
    adapted: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "merged"
    assert main(["export", str(adapted), "--merge", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "blip_itm", "export.json", "fusion_encoder.safetensors", "t5",
    ]  # fmt: skip
    for name, kind in (("blip_itm", BlipForImageTextRetrieval), ("t5", T5ForConditionalGeneration)):
        _, report = kind.from_pretrained(out / name, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    assert str(out / "t5") in capsys.readouterr().out
    plain = RunDirectory(tmp_path / "plain")
    plain.create()
    config = read_run(adapted)
    without = config.model.model_copy(update={"lora": LoraParts()})
    plain.write_config(config.model_copy(update={"model": without}))
    shutil.copytree(out, plain.export)
    expected, found = answer_photo(adapted, photo, QUESTION), answer_photo(plain.path, photo, QUESTION)
    assert found.text == expected.text
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-4)


def test_adapters_merge_into_the_checkpoint_that_has_the_trained_vision_tower(
    project: Project, run: Path, photo: Path, tmp_path: Path
) -> None:
    export = RunDirectory(run).export
    adapted = finished_run(
        project,
        tmp_path / "lora",
        f"model.vision={export / 'blip_itm'}",
        f"model.match={export / 'blip_itm'}",
        f"model.answer={export / 'blip_vqa'}",
        f"model.efficient_sam.checkpoint={export / 'efficient_sam.safetensors'}",
        "model.freeze=[second_stream, match, answer]",
        *("model.lora.match.rank=2", "model.lora.match.targets=[query, itm_head]"),
        *("model.lora.answer.rank=2", "model.lora.answer.targets=[value]"),
    )
    copy_export(adapted, tmp_path / "merged", merge=True)
    assert not list(tmp_path.glob(".*.partial"))
    plain = RunDirectory(tmp_path / "plain")
    plain.create()
    config = read_run(adapted)
    plain.write_config(config.model_copy(update={"model": config.model.model_copy(update={"lora": LoraParts()})}))
    shutil.copytree(tmp_path / "merged", plain.export)
    expected, found = answer_photo(adapted, photo, QUESTION), answer_photo(plain.path, photo, QUESTION)
    assert found.text == expected.text
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-4)
    for split in (evaluate_run(path, "val")[0] for path in (adapted, plain.path)):
        assert split["val/itm_loss"] == pytest.approx(evaluate_run(adapted, "val")[0]["val/itm_loss"], rel=1e-4)


def test_an_export_is_copied_whole_and_never_over_something(adapted: Path, tmp_path: Path) -> None:
    lines = copy_export(adapted, tmp_path / "copy", merge=False)
    assert any("lora_match" in line for line in lines)
    original = {p.relative_to(RunDirectory(adapted).export) for p in RunDirectory(adapted).export.rglob("*")}
    assert {p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*")} == original
    with pytest.raises(UserError, match=r"copy: exists already"):
        copy_export(adapted, tmp_path / "copy", merge=True)
