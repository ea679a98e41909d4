"""A recipe over regions: what its loader gives, the head that it may start from, and shards that do not fit it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.build import BuiltModel
from shards.errors import ConfigError
from shards.read.collate import SeenRegions
from shards.read.eyes import RegionEyes
from tests.official import Official
from tests.regions import NUM_REGIONS, REGION_WIDTH, regions_of, row_of, shared_lxmert, write_tsv
from tests.runs import answer_photo, weights
from tests.task_corpora import task_recipe, write_task
from trainer.build import assemble_model, classes_of, evaluation_loader, image_size, open_split, training_loader
from trainer.cli import main
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import World
from trainer.export.initial_weights import start_answers
from trainer.export.write import export_model
from trainer.run_directory import RunDirectory

ALONE = World()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_task(tmp_path_factory.mktemp("lxmert"), "lxmert")


def config_of(tmp_path: Path, data: dict[str, str], *overrides: str) -> RunConfig:
    return load_config(task_recipe(tmp_path / "own.yaml", "lxmert", data), overrides)


def model_of(config: RunConfig) -> BuiltModel:
    classes = classes_of(config, open_split(config, "train").index)
    return assemble_model(config, scratch_tokenizer=lambda: pytest.fail("nothing is scratch"), classes=classes)


def test_a_batch_shows_features_and_boxes_in_parts_of_their_images(tmp_path: Path, data: dict[str, str]):
    config = config_of(tmp_path, data)
    split = open_split(config, "train")
    _, loader = training_loader(config, split, model_of(config), ALONE)
    item = next(loader.batches([(0, 0, 0)]))
    shown = item.batch.shown
    assert isinstance(shown, SeenRegions)
    assert shown.features.shape == (len(item.samples), NUM_REGIONS, REGION_WIDTH)
    assert shown.features.dtype == shown.boxes.dtype == torch.float32
    assert item.batch.num_images == len(item.samples)
    eyes = RegionEyes(split.index.regions)
    for row, sample in enumerate(item.samples):
        expected = eyes.see(split.reader.images(sample)[0], "here")
        assert torch.equal(shown.features[row], expected.features)
        assert torch.equal(shown.boxes[row], expected.boxes)
    assert 0 <= float(shown.boxes.min()) <= float(shown.boxes.max()) <= 1
    assert bool((shown.boxes[..., 2:] >= shown.boxes[..., :2]).all())


def test_another_image_is_shown_where_images_are_shuffled(tmp_path: Path, data: dict[str, str]):
    config = config_of(tmp_path, data)
    built, split = model_of(config), open_split(config, "val")
    seen = []
    for shuffle in (False, True):
        batches, loader = evaluation_loader(config, split, built, ALONE, shuffle_images=shuffle)
        found = {}
        for item in loader.batches(batches.all_keys()):
            found |= {sample: item.batch.shown.features[row] for row, sample in enumerate(item.samples)}
        seen.append(found)
    own, other = seen
    assert own.keys() == other.keys()
    assert not any(torch.equal(own[sample], other[sample]) for sample in own)
    assert sorted(float(value.sum()) for value in own.values()) == sorted(float(v.sum()) for v in other.values())


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of another detector."""
    home = tmp_path_factory.mktemp("narrow")
    regions = write_tsv(home / "t.tsv", [row_of("a", regions_of(1, 2, width=7))])
    asked = [{"question_id": 1, "img_id": "a", "sent": "So?", "label": {"yes": 1}}]
    (home / "q.json").write_text(json.dumps(asked))
    return Official("lxmert", None, (home / "q.json",), regions=(regions,)).build(home / "shards")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_start_over_regions_of_another_width_ends_in_one_line_and_writes_nothing(
    tmp_path: Path, data: dict[str, str], narrow: str, split: str, capsys: pytest.CaptureFixture[str]
):
    recipe, run = task_recipe(tmp_path / "own.yaml", "lxmert", data), tmp_path / "runs"
    assert main(["train", str(recipe), f"data.{split}={narrow}", f"run.directory={run}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("duoflow: ")]
    assert f"reads regions of {REGION_WIDTH} numbers, and {narrow} holds 2 regions of 7 numbers" in line
    assert not run.exists()


def test_regions_of_another_width_are_one_line(tmp_path: Path, data: dict[str, str], narrow: str):
    out = narrow
    config = config_of(tmp_path, data, f"data.val={out}")
    with pytest.raises(ConfigError) as told:
        evaluation_loader(config, open_split(config, "val"), model_of(config), ALONE)
    assert f"reads regions of {REGION_WIDTH} numbers, and {out} holds 2 regions of 7 numbers" in str(told.value)


def test_a_size_of_squares_means_nothing_to_regions(tmp_path: Path, data: dict[str, str]):
    config = config_of(tmp_path, data)
    assert image_size(config, model_of(config)) is None
    config = config_of(tmp_path, data, "data.image_size=64")
    with pytest.raises(ConfigError, match=r"^data\.image_size: 64, but .* reads regions; set it to null"):
        image_size(config, model_of(config))


def test_a_run_starts_from_the_rows_of_the_answers_that_its_checkpoint_knows(tmp_path: Path, data: dict[str, str]):
    known = ("red", "no", "nobody", "1", "left", "x")
    (tmp_path / "all_ans.json").write_text(json.dumps([{"ans": answer} for answer in known]))
    start = ("answers.start_from=" + shared_lxmert(), f"answers.start_list={tmp_path / 'all_ans.json'}")
    config = config_of(tmp_path, data, *start)
    built = model_of(config)
    before = weights(built.objective)
    matched = [answer for answer in built.classes if answer in known]
    said = start_answers(built, config.answers)
    assert said.startswith(f"{len(matched)} of {len(built.classes)} answers are among the 6 of ")
    assert 0 < len(matched) < len(built.classes)
    after = weights(built.objective)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".layers.")[0] for name in changed} == {"heads.classify"}
    bias, rows = after["heads.classify.layers.3.weight"], range(len(built.classes))
    assert [bool(bias[row].any()) for row in rows] == [answer in known for answer in built.classes]


def test_a_photo_has_no_regions(tmp_path: Path, data: dict[str, str]):
    config = config_of(tmp_path, data, f"run.directory={tmp_path / 'runs'}", "run.name=run")
    built, run = model_of(config), RunDirectory.of(config)
    run.create()
    run.write_config(config)
    export_model(config, built, weights(built.objective), run.export, step=1, metrics={})
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(ConfigError, match="its model reads regions of a detector, which a photo does not have"):
        answer_photo(run.path, tmp_path / "photo.png", "What color is the square?")
