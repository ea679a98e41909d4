"""Cached tokens in training and evaluation: the same batches, losses that differ by rounding, no image looked at."""

import errno
import json
import logging
import resource
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from model.frozen_streams import frozen_streams, stream_tokens
from model.towers.vision import BlipVisionTower
from shards.build.feature_writer import FeatureTar
from shards.errors import ConfigError
from shards.format.features import FeatureShard, read_feature_index
from shards.format.index import INDEX_NAME
from shards.read.collate import SeenFeatures
from shards.read.features import CachedSight, FeatureCache
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import training_keys
from tests.unit.trainer.features.projects import cache, write_project
from trainer import cli
from trainer.build import (
    assemble_model,
    evaluation_loader,
    image_size,
    open_split,
    training_loader,
)
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import World
from trainer.features.use import cacheable_streams, cached_sight, described
from trainer.training.loop import seed_generators

STEPS = 20
STREAMS = ("second_stream", "vision")
ALONE = World()


class Trial:
    """A recipe with its model, as a run would have them."""

    def __init__(self, recipe: Path, *overrides: str) -> None:
        self.config: RunConfig = load_config(recipe, overrides)
        self.built = assemble_model(self.config, scratch_tokenizer=_none)
        self.split = open_split(self.config, "train")

    def sight(self, name: str = "train") -> CachedSight | None:
        streams = cacheable_streams(self.config, self.built, [name], ALONE)
        return cached_sight(self.config, name, open_split(self.config, name), streams, self.built, ALONE)

    def training(self, features: CachedSight | None) -> list[MicroBatch]:
        batches, loader = training_loader(self.config, self.split, self.built, ALONE, features=features)
        return list(loader.batches(training_keys(0, 0, batches.length, batches.accumulation)))

    def losses(self, features: CachedSight | None) -> list[float]:
        """Of so many steps of a plain AdamW, dropout on."""
        torch.manual_seed(7)
        model = Trial(Path(self.config.run.directory).parent / "frozen.yaml", *self.overrides).built
        batches, loader = training_loader(self.config, self.split, model, ALONE, features=features)
        optimizer, found = torch.optim.AdamW(model.objective.parameters(), lr=1e-3), []
        for step in range(STEPS):
            epoch, place = divmod(step, batches.length)
            loss = 0.0
            for micro, item in enumerate(loader.batches(training_keys(epoch, place, place + 1, batches.accumulation))):
                seed_generators(3, step, micro, 0)
                output = model.objective(item.batch).loss
                output.backward()
                loss += float(output.detach())
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss)
        return found

    overrides = ("model.fusion.dropout=0.1",)


def _none() -> None:
    raise AssertionError("nothing is scratch here")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with fp16 caches of its training split, and int8 ones of its validation split."""
    recipe = write_project(tmp_path_factory.mktemp("features"))
    assert cache(recipe, "train") == 0
    assert cache(recipe, "val", "--dtype", "int8") == 0
    return recipe


@pytest.fixture
def own(project: Path, tmp_path: Path) -> Path:
    """A copy of the caches that may be damaged; gives their directory of the training split."""
    shutil.copytree(project.parent / "train" / "shards" / "features", tmp_path / "features" / "train")
    return tmp_path / "features" / "train"


def damaged(project: Path, own: Path) -> Trial:
    return Trial(project, f"data.features_directory={own.parent}")


def directory(own: Path, stream: str) -> Path:
    (found,) = own.glob(f"{stream}.*")
    return found


class TestSight:
    @pytest.mark.parametrize(("split", "dtype"), [("train", torch.float16), ("val", torch.int8)])
    def test_it_shows_what_the_encoders_make_of_each_image(self, project: Path, split: str, dtype: torch.dtype):
        trial = Trial(project)
        opened, objective = open_split(trial.config, split), trial.built.objective
        streams = cacheable_streams(trial.config, trial.built, [split], ALONE)
        sight = cached_sight(trial.config, split, opened, streams, trial.built, ALONE)
        assert sight.is_whole
        pairs = [
            evaluation_loader(trial.config, opened, trial.built, ALONE, features=features) for features in (None, sight)
        ]
        plain, cached = (list(loader.batches(batches.all_keys())) for batches, loader in pairs)
        assert len(plain) == len(cached) > 1
        for seen, kept in zip(plain, cached, strict=True):
            assert isinstance(kept.batch.shown, SeenFeatures)
            assert kept.batch.shown.shown is None
            assert kept.batch.shown.vision.values.dtype == dtype
            for tokens in (objective.image_tokens, objective.feature_map):
                expected, found = tokens(seen.batch.shown), tokens(kept.batch.shown)
                if tokens == objective.feature_map:
                    expected = torch.nn.functional.adaptive_avg_pool2d(expected, found.shape[-1])
                tolerance = 1e-3 if dtype == torch.float16 else 1e-2
                assert torch.allclose(found, expected, atol=tolerance * float(expected.abs().max()))

    def test_texts_order_and_labels_are_those_without_a_cache(self, project: Path):
        trial = Trial(project)
        for plain, cached in zip(trial.training(None), trial.training(trial.sight()), strict=True):
            assert plain._replace(batch=None) == cached._replace(batch=None)
            for name, block in plain.batch.blocks.items():
                assert torch.equal(block.ids, cached.batch.blocks[name].ids)
                assert torch.equal(block.image, cached.batch.blocks[name].image)
                assert torch.equal(block.labels, cached.batch.blocks[name].labels)

    def test_no_image_is_decoded_and_no_encoder_runs(self, project: Path, monkeypatch: pytest.MonkeyPatch):
        trial = Trial(project)
        sight = trial.sight()
        ran: Counter[str] = Counter()
        monkeypatch.setattr("shards.read.eyes.decode_image", lambda *_: ran.update(["decoded"]))
        monkeypatch.setattr("shards.format.tar_reader.ShardReader.images", lambda *_: ran.update(["read"]))
        for tower in (trial.built.objective.sight.module, trial.built.objective.tower("second_stream")):
            tower.register_forward_hook(lambda *_: ran.update(["encoded"]))
        for item in trial.training(sight):
            trial.built.objective(item.batch).loss.backward()
        assert not ran

    def test_the_images_of_a_batch_change_places_with_their_tokens(self, project: Path):
        trial = Trial(project)
        item = next(item for item in trial.training(trial.sight()) if len(item.samples) > 1)
        exchanged = item.batch.with_images_exchanged(len(item.samples))
        assert torch.equal(exchanged.shown.vision.values, item.batch.shown.vision.values.roll(1, dims=0))
        assert item.batch.num_images == len(item.samples)

    def test_workers_read_the_same(self, project: Path):
        alone, helped = Trial(project), Trial(project, "data.workers=2")
        for one, other in zip(alone.training(alone.sight()), helped.training(helped.sight()), strict=True):
            assert torch.equal(one.batch.shown.vision.values, other.batch.shown.vision.values)

    def test_a_padding_batch_runs_the_same_layers_with_weight_0(self, project: Path):
        trial = Trial(project)
        empty = [item for item in trial.training(trial.sight()) if not item.samples]
        assert empty, "33 visits leave lanes without one"
        assert isinstance(empty[0].batch.shown, SeenFeatures)
        assert trial.built.objective(empty[0].batch).loss.item() == 0.0

    def test_a_stream_that_is_trained_is_looked_at_and_the_other_one_is_not(self, project: Path, caplog):
        caplog.set_level(logging.INFO)
        freeze = "model.freeze=[vision, match, answer]"
        trial = Trial(project, freeze)
        sight = trial.sight()
        assert list(sight.caches) == ["vision"]
        assert not sight.is_whole
        assert "model.second_stream is trained, and its tokens are never kept" in caplog.text
        item = trial.training(sight)[0]
        assert item.batch.shown.shown.dtype == torch.uint8
        ran: Counter[str] = Counter()
        trial.built.objective.sight.module.register_forward_hook(lambda *_: ran.update(["vision"]))
        trial.built.objective.tower("second_stream").encoder.register_forward_hook(lambda *_: ran.update(["second"]))
        trial.built.objective(item.batch).loss.backward()
        assert ran == {"second": 1}


class TestLosses:
    def test_fp16_stays_within_a_thousandth_at_each_step(self, project: Path):
        trial = Trial(project)
        plain, cached = trial.losses(None), trial.losses(trial.sight())
        for step, (expected, found) in enumerate(zip(plain, cached, strict=True)):
            assert found == pytest.approx(expected, rel=1e-3), step
        assert plain != cached, "the tokens were rounded"

    def test_int8_stays_within_a_fiftieth(self, project: Path, tmp_path: Path):
        assert cache(project, "train", "--dtype", "int8", "--out", str(tmp_path)) == 0
        trial = Trial(project, f"data.features_directory={tmp_path}")
        assert trial.losses(trial.sight()) == pytest.approx(trial.losses(None), rel=2e-2)


class TestRefusals:
    def test_off_and_no_caches_read_images_and_say_nothing(self, project: Path, tmp_path: Path, caplog):
        assert Trial(project, "data.features=off").sight() is None
        assert Trial(project, f"data.features_directory={tmp_path}").sight() is None
        assert caplog.text == ""

    def test_other_weights_are_named_and_the_run_goes_on_without(self, project: Path, caplog):
        trial = Trial(project)
        with torch.no_grad():
            next(trial.built.objective.sight.module.parameters()).add_(1e-3)
        sight = trial.sight()
        assert list(sight.caches) == ["second_stream"]
        caplog.set_level(logging.INFO)
        trial.sight()
        assert "other weights of model.vision" in caplog.text
        assert caplog.text.count("\n") == 1

    def test_another_size_of_images_is_named(self, project: Path, caplog):
        assert Trial(project, "data.image_size=48").sight() is None
        assert "squares of 64 pixels" in caplog.text
        assert "this recipe has squares of 48 pixels" in caplog.text

    def test_other_shards_are_named(self, project: Path, own: Path, caplog):
        shutil.copytree(own, own.parent / "val")
        assert damaged(project, own).sight("val") is None
        assert "it was made from other shards" in caplog.text

    @pytest.mark.parametrize("damage", ["cut", "gone", "index", "unfinished"])
    def test_what_is_not_whole_is_named_and_not_read(self, project: Path, own: Path, caplog, damage: str):
        for stream in STREAMS:
            place = directory(own, stream)
            if damage == "cut":
                (place / "000001.tar").write_bytes((place / "000001.tar").read_bytes()[:-512])
            elif damage == "gone":
                (place / "000001.tar").unlink()
            elif damage == "index":
                (place / INDEX_NAME).write_bytes((place / INDEX_NAME).read_bytes().replace(b"fp32", b"fp64"))
            else:
                (place / INDEX_NAME).unlink()
        assert damaged(project, own).sight() is None
        said = {
            "cut": "its 000001.tar has",
            "gone": "its 000001.tar is missing",
            "index": "its index.json is damaged",
            "unfinished": "it is not finished (no index.json)",
        }
        assert said[damage] in caplog.text
        assert caplog.text.count("\n") == 1

    def test_a_flipped_byte_is_named_and_its_batch_made_from_images(self, project: Path, own: Path, caplog):
        tar = directory(own, "vision") / "000000.tar"
        layout = read_feature_index(tar.parent).layout
        data = bytearray(tar.read_bytes())
        data[layout.offset(1) + layout.member_bytes - 3] ^= 16
        tar.write_bytes(data)
        trial = damaged(project, own)
        batches, loader = training_loader(trial.config, trial.split, trial.built, ALONE, features=trial.sight())
        shown = []
        for epoch in (0, 1):
            keys = training_keys(epoch, 0, batches.length, batches.accumulation)
            shown += [isinstance(item.batch.shown, SeenFeatures) for item in loader.batches(keys)]
        assert not all(shown)
        assert sum(shown) > len(shown) / 2
        assert caplog.text.count("000000.tar: image 1 is damaged") == 1

    @pytest.mark.parametrize("recipe", [(), ("data.augment=rand-m9",)])
    def test_what_is_required_and_cannot_be_read_ends_the_run(self, project: Path, tmp_path: Path, recipe: tuple):
        trial = Trial(project, "data.features=require", f"data.features_directory={tmp_path}", *recipe)
        with pytest.raises(ConfigError, match=r"data\.features: require, but train: ") as refused:
            trial.sight()
        assert "\n" not in str(refused.value)

    def test_pictures_that_are_changed_are_never_read_from_a_cache(self, project: Path, caplog):
        trial = Trial(project, "data.augment=rand-m9")
        assert trial.sight() is None
        assert "data.augment=rand-m9 changes pictures" in caplog.text
        assert trial.sight("val") is not None


class TestWriting:
    def test_a_dry_run_says_bytes_and_time_and_writes_nothing(self, project: Path, tmp_path: Path, capsys):
        out = tmp_path / "out"
        assert cache(project, "train", "--dry-run", "--out", str(out)) == 0
        assert not out.exists()
        said = capsys.readouterr().out
        assert "24 images, vision 17 x 24 fp16, second_stream 16 x 8 fp16" in said
        assert "MB to write" in said
        assert "ms an image" in said

    def test_a_second_call_writes_nothing(self, project: Path, own: Path):
        before = {path: path.stat().st_mtime_ns for path in own.rglob("*.tar")}
        assert cache(project, "train", "--out", str(own.parent)) == 0
        assert {path: path.stat().st_mtime_ns for path in own.rglob("*.tar")} == before

    @pytest.mark.parametrize("damage", ["flipped", "gone", "cut"])
    def test_damage_is_mended_to_the_byte_and_the_rest_is_left(self, project: Path, own: Path, damage: str):
        tar = directory(own, "vision") / "000002.tar"
        whole, others = tar.read_bytes(), {p: p.stat().st_mtime_ns for p in own.rglob("*.tar") if p != tar}
        if damage == "gone":
            tar.unlink()
        else:
            half = len(whole) // 2
            rest = bytes([whole[half] ^ 1]) + whole[half + 1 :] if damage == "flipped" else b""
            tar.write_bytes(whole[:half] + rest)
        assert cache(project, "train", "--out", str(own.parent)) == 0
        assert tar.read_bytes() == whole
        assert {p: p.stat().st_mtime_ns for p in others} == others
        assert damaged(project, own).sight() is not None

    def test_a_disk_that_fills_up_leaves_the_finished_tars_and_the_next_call_goes_on(
        self, project: Path, tmp_path: Path, monkeypatch, capsys
    ):
        finished, finish = [], FeatureTar.finish

        def fill(tar: FeatureTar) -> FeatureShard:
            if len(finished) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            finished.append(finish(tar))
            return finished[-1]

        monkeypatch.setattr(FeatureTar, "finish", fill)
        assert cache(project, "train", "--out", str(tmp_path)) == 2
        error = capsys.readouterr().err.splitlines()
        assert len([line for line in error if "No space left on device; finished tars stay" in line]) == 1
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert len(kept) == 3
        monkeypatch.setattr(FeatureTar, "finish", finish)
        assert cache(project, "train", "--out", str(tmp_path)) == 0
        assert {path: path.read_bytes() for path in kept} == kept

    def test_a_kernel_that_refuses_a_write_is_one_line(self, project: Path, tmp_path: Path, capsys):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
            assert cache(project, "train", "--out", str(tmp_path)) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "finished tars stay" in capsys.readouterr().err
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_disk_without_room_is_said_before_anything_is_written(
        self, project: Path, tmp_path: Path, monkeypatch, capsys
    ):
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr("trainer.features.write.shutil.disk_usage", lambda _: usage)
        assert cache(project, "train", "--out", str(tmp_path)) == 2
        assert "--dtype int8 (half of it)" in capsys.readouterr().err
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_recipe_in_which_nothing_is_frozen_is_refused(self, project: Path, tmp_path: Path, capsys):
        freeze = ["model.freeze=[match, answer]", f"data.features_directory={tmp_path}"]
        assert cli.main(["features", "cache", str(project), *freeze, "--split", "train"]) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith("nothing is left to keep")

    def test_a_split_that_the_recipe_does_not_name_is_refused(self, project: Path, capsys):
        assert cache(project, "test") == 2
        assert capsys.readouterr().err.startswith("duoflow: data.test: is not set")


def test_a_checkpoint_knows_which_caches_were_read(project: Path):
    sight = Trial(project).sight()
    names = json.loads(described({"train": sight, "val": None}))["train"]
    assert [name.split(".")[0] for name in names] == list(STREAMS)
    assert described({"train": None}) == ""


def test_a_kept_map_is_the_pooled_one_and_pools_to_itself(project: Path):
    trial = Trial(project)
    pixels = trial.training(None)[0].batch.shown
    objective = trial.built.objective
    cells = stream_tokens(objective, "second_stream", pixels)
    assert cells.shape[1] == 16 < objective.feature_map(pixels).flatten(2).shape[2]
    (vision, second) = frozen_streams(objective, image_size(trial.config, trial.built))
    assert "pooled to 4 x 4" in second.preprocessing
    assert isinstance(objective.sight, BlipVisionTower)
    assert "bicubic" in vision.preprocessing


def test_a_cache_goes_to_workers_without_its_maps(project: Path):
    sight = Trial(project).sight()
    cache_of_vision = sight.caches["vision"]
    cache_of_vision.read(0, 0)
    kind, arguments = cache_of_vision.__reduce__()
    assert kind is FeatureCache
    assert torch.equal(kind(*arguments).read(0, 0).values, cache_of_vision.read(0, 0).values)
