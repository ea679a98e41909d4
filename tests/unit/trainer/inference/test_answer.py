"""What a run's export is asked: a photo and a question, a split through PNP-VQA, a copy with merged adapters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import BlipForImageTextRetrieval, T5ForConditionalGeneration

from model.build import FusedStreams
from model.config import LoraParts, ModelConfig
from model.looking.guidance import Look
from model.pnp.overlay import GAP, POINT_FILL, STRONG, display_size, muted, point_radius
from shards.errors import ConfigError, UserError
from shards.read.eyes import square_image
from shards.read.photo import read_photo
from tests.models import tiny_captioner, tiny_t5
from tests.runs import Project, answer_photo, evaluate_run, weights
from trainer.build import assemble_model, build_viewer, image_size, open_split, training_tokenizer
from trainer.cli import main
from trainer.export.merge import copy_export
from trainer.export.read import load_exported, open_keys, read_run
from trainer.export.write import export_model
from trainer.inference.answer import answer_photos
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
        (tmp_path / "photo.jpg").write_bytes(reader.images(image)[0])
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
    assert drawn.height > (drawn.width - GAP) / 2 * 40 / 60, "the photo twice, and words below"
    assert bool(found.captions) == (pipeline == "pnp")


def test_each_of_several_photos_is_asked_about_and_drawn_into_a_directory(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 40), "green").save(other)
    expected = [answer_photo(run, path, QUESTION) for path in (photo, other)]
    command = ["answer", str(run), "--image", str(photo), str(other), "--question", QUESTION, "--overlay"]
    drawn = tmp_path / "drawn"
    assert main([*command, str(drawn)]) == 2
    assert f"2 photos need a directory that is there; `mkdir -p {drawn}` makes it" in capsys.readouterr().err
    drawn.mkdir()
    assert main([*command, str(drawn)]) == 0
    said = capsys.readouterr().out.splitlines()
    pictures = [drawn / f"{path.stem}.png" for path in (photo, other)]
    answers = [
        f"{path}: {one.text}  ({100 * one.confidence:.1f} %)"
        for path, one in zip((photo, other), expected, strict=True)
    ]
    assert said == [answers[0], f"drawn: {pictures[0]}", answers[1], f"drawn: {pictures[1]}"]
    alone = tmp_path / "alone.png"
    answer_photo(run, other, QUESTION, overlay=alone)
    assert pictures[1].read_bytes() == alone.read_bytes()
    with pytest.raises(UserError, match=r"two photos would be \S+photo\.png"):
        next(answer_photos(run, [photo, tmp_path / photo.name], QUESTION, overlay=drawn))


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
    assert_shows(Image.open(tmp_path / "out.png"), read_photo(path), looked_at(run, path))


def looked_at(run: Path, photo: Path) -> Look:
    """What is found in a photo for the question and the answer that it gets."""
    config, built, device, _ = load_exported(run, read_run(run))
    pixels = square_image(read_photo(photo), image_size(config, built))[None].to(device)
    answered = answer_photo(run, photo, QUESTION).text
    return build_viewer(config, built, device).look(pixels, [QUESTION], torch.zeros(1, dtype=torch.int64), [answered])


def assert_shows(picture: Image.Image, upright: Image.Image, found: Look) -> None:
    """A dot at every point on strong heat, and the more color over a cell of the photo the hotter it is."""
    size = display_size(*upright.size)
    left = (picture.width - 2 * size[0] - GAP) // 2
    drawn = np.asarray(picture.crop((left, 0, left + size[0], size[1]))).astype(int)
    heat, (points,) = found.refined[0].numpy(), found.points
    grid = len(heat)
    plain = upright.resize(size, Image.Resampling.BICUBIC)
    changed = np.abs(drawn - (muted(plain) if heat.max() > 0 else np.asarray(plain))).sum(axis=-1).astype(float)
    near = point_radius(size) + 1
    for point in points:
        row, column = (int((cell + 0.5) / grid * side) for cell, side in zip(point[:2], reversed(size), strict=True))
        if heat[point.row, point.column] < 1.01 * STRONG * heat.max():
            continue
        around = np.s_[max(0, row - near) : row + near + 1, max(0, column - near) : column + near + 1]
        assert (drawn[around] == POINT_FILL).all(axis=-1).mean() > 0.2
        changed[around] = np.nan
    rows, columns = (np.array_split(np.arange(side), grid) for side in reversed(size))
    cells = np.array([[np.nanmean(changed[np.ix_(row, column)]) for column in columns] for row in rows])
    if heat.max() == 0:
        assert not cells.any()
        return
    likeness = [np.corrcoef(cells.ravel(), turned.ravel())[0, 1] for turned in eight_ways(heat)]
    assert likeness[0] > 0.8
    assert likeness[0] == max(likeness), "the heat is turned or mirrored"


def eight_ways(grid: np.ndarray) -> list[np.ndarray]:
    """A square as it is, then turned and mirrored."""
    return [np.rot90(side, quarter) for side in (grid, grid.T) for quarter in range(4)]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heat_and_points_lie_where_they_belong_in_the_upright_photo(
    run: Path, photo: Path, orientation: int, tmp_path: Path
) -> None:
    upright, turned = Image.open(photo), tmp_path / "turned.png"
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (upright if orientation == 1 else upright.transpose(back[orientation])).save(turned, exif=exif)
    out = tmp_path / "out.png"
    answer_photo(run, turned, QUESTION, overlay=out)
    found = looked_at(run, photo)
    (points,) = found.points
    assert points, "a heatmap without points proves nothing"
    assert all((point.row, point.column) != (point.column, point.row) for point in points[:1])
    assert_shows(Image.open(out), upright, found)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_question_of_any_length_fits_the_picture(run: Path, photo: Path, suffix: str, tmp_path: Path) -> None:
    answer_photo(run, photo, "is it red? " * 11_000, overlay=tmp_path / f"out.{suffix}")
    assert Image.open(tmp_path / f"out.{suffix}").height < 1000


@pytest.mark.parametrize("error", [OSError("encoder error -2 when writing image file"), ValueError("too large")])
def test_a_picture_that_its_format_cannot_hold_is_one_line_and_no_file(
    run: Path, photo: Path, error: Exception, capsys: pytest.CaptureFixture, monkeypatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    given = ["answer", str(run), "--image", str(photo), "--question", QUESTION]
    assert main([*given, "--overlay", str(tmp_path / "out.webp")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"out.webp: a picture of {2 * 384 + GAP} x " in message
    assert f"cannot be written as .webp ({error}); name a .png" in message
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--question", ""], "question: empty"),
        (["--image", "nowhere.png"], "nowhere.png: cannot be read"),
        (["--overlay", "out.tar"], "out.tar: ends with '.tar'; expected .png"),
        (["optim.lr=1"], "optim.lr=1: is settled by the run"),
        (["model.guidance.block=0"], "model.guidance.block=0: has no effect here"),
        (["--overlay", "photo.png"], "photo.png: is the photo itself"),
        (["--overlay", "photo.png/out.png"], "cannot be made"),
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


def test_pnp_looks_past_the_fusion_where_it_is_asked_to(
    run: Path, pnp: list[str], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[int] = []
    monkeypatch.setattr("model.build.FusedStreams.forward", counting(FusedStreams.forward, fused))
    plain = [*pnp, "pnp.looks_with=plain"]
    answers = {}
    for name, overrides, calls in (("fused", pnp, True), ("plain", plain, False)):
        fused.clear()
        answer_photo(run, photo, QUESTION, pipeline="pnp", overrides=overrides, overlay=tmp_path / f"{name}.png")
        evaluate_run(run, "val", pipeline="pnp", overrides=overrides)
        assert bool(fused) == calls
        answers[name] = RunDirectory(run).predictions("val.pnp").read_bytes()
    assert answers["fused"] != answers["plain"]
    assert (tmp_path / "fused.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
    with pytest.raises(ConfigError, match=r"pnp\.looks_with=plain: has no effect here"):
        answer_photo(run, photo, QUESTION, overlay=tmp_path / "out.png", overrides=["pnp.looks_with=plain"])


def counting(method: Callable, calls: list[int]) -> Callable:
    def counted(self: object, *inputs: object) -> object:
        calls.append(1)
        return method(self, *inputs)

    return counted


def test_a_run_of_towers_of_two_widths_looks_through_its_fusion_alone(
    run: Path, pnp: list[str], photo: Path, project: Project, tmp_path: Path
) -> None:
    export = RunDirectory(run).export
    wider = RunDirectory(finished_run(project, tmp_path / "wider", "model.scratch.width=36")).export
    towers = {"vision": wider / "blip_itm", "match": export / "blip_itm", "answer": export / "blip_vqa"}
    given = [f"model.{name}={path}" for name, path in towers.items()]
    wide = finished_run(project, tmp_path / "wide", *given, "model.freeze=[vision, match, answer]")
    assert answer_photo(wide, photo, QUESTION, pipeline="pnp", overrides=pnp).captions
    with pytest.raises(
        ConfigError, match=r"pnp\.looks_with: plain .* 36 wide, and model\.match reads 24; .* use fused"
    ):
        answer_photo(wide, photo, QUESTION, pipeline="pnp", overrides=[*pnp, "pnp.looks_with=plain"])


def test_a_guided_run_looks_before_it_fuses_whatever_is_asked(project: Project, tmp_path: Path) -> None:
    config = project.config("model.second_stream=none")
    guided = {"second_stream": "efficient_sam_masks", "vision": "a/b", "match": "a/b", "answer": "a/c"}
    guided |= {"freeze": ("vision", "second_stream", "match", "answer"), "efficient_sam": {"checkpoint": "sam.pt"}}
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.write_config(config.model_copy(update={"model": ModelConfig.model_validate(guided)}))
    keys = open_keys(looks=True, pnp=True)
    assert read_run(directory.path, ["pnp.looks_with=plain"], open_keys=keys).pnp.looks_with == "plain"
    assert read_run(directory.path, ["pnp.seed=3"], open_keys=keys).pnp.looks_with == "fused"
    with pytest.raises(ConfigError, match=r"pnp\.looks_with=fused: this run looks before it fuses, .*; use plain"):
        read_run(directory.path, ["pnp.looks_with=fused"], open_keys=keys)


def test_a_split_that_the_recipe_lacks_can_be_named_later(run: Path, project: Project) -> None:
    metrics, _ = evaluate_run(run, "val")
    elsewhere, _ = evaluate_run(run, "testdev", overrides=[f"data.testdev={project.config().data.val}"])
    assert elsewhere["testdev/accuracy"] == metrics["val/accuracy"]


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
        "LICENSE", "README.md", "blip_itm", "config.yaml", "export.json", "fusion_encoder.safetensors", "manifest.json",
        "preprocessing.json", "t5", "tokenizers",
    ]  # fmt: skip
    for name, kind in (("blip_itm", BlipForImageTextRetrieval), ("t5", T5ForConditionalGeneration)):
        _, report = kind.from_pretrained(out / name, output_loading_info=True)
        left_out = json.loads((out / name / "config.json").read_text()).get("left_out", [])
        assert {key.partition(".")[0] for key in report["missing_keys"]} == set(left_out)
        assert not report["unexpected_keys"]
    assert str(out / "t5") in capsys.readouterr().out
    plain = RunDirectory(tmp_path / "plain")
    plain.create()
    config = read_run(adapted)
    without = config.model.model_copy(update={"lora": LoraParts()})
    plain.write_config(config.model_copy(update={"model": without}))
    shutil.copytree(out, plain.export)
    expected = answer_photo(adapted, photo, QUESTION)
    for merged in (plain.path, out):  # by a recipe without adapters, and by the one that it brings
        found = answer_photo(merged, photo, QUESTION)
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
