"""Weights that a recipe names: what fits is described, what does not says what is wrong and how to get it."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from model.efficient_sam import weights as efficient_sam_weights
from model.towers import checkpoint_files
from tests.unit.trainer.doctor.recipe_files import ITM, T5, VQA, loaded, rows_of, write_checkpoint
from trainer.config import RunConfig
from trainer.doctor import efficient_sam_file
from trainer.doctor.checkpoints import checkpoint_rows, checkpoint_uses, examine, examine_all, read_width, width_row
from trainer.doctor.efficient_sam_file import efficient_sam_row, git_blob_sha1
from trainer.doctor.table import Row

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class TestCheckpoints:
    def test_the_old_name_of_t5_is_taken(self, recipe: Path, tmp_path: Path):
        path = write_checkpoint(tmp_path / "t5", T5)
        config = (path / "config.json").read_text().replace(T5, "T5WithLMHeadModel")
        (path / "config.json").write_text(config)
        row = rows_of(loaded(recipe, "model.answer=./t5", "pnp.reader=./t5"))["model.answer, pnp.reader"]
        assert row.fault is None
        assert "./t5: T5ForConditionalGeneration, in " in row.found

    def test_captions_cannot_start_from_scratch(self, recipe: Path):
        rows = rows_of(loaded(recipe, "pnp.captioner=scratch", "pnp.reader=scratch"))
        for key in ("pnp.captioner", "pnp.reader"):
            assert rows[key].found.startswith("scratch: only parts of the model section can start untrained")

    @pytest.mark.parametrize("text", [{}, {"encoder_hidden_size": 7}])
    @pytest.mark.parametrize("vision", [{}, {"hidden_size": 1024}])
    def test_blip_reads_what_its_own_vision_tower_writes(self, text: dict, vision: dict):
        from transformers import BlipConfig

        config = BlipConfig(text_config=text, vision_config=vision)
        assert read_width({"vision_config": vision, "text_config": text}) == config.text_config.encoder_hidden_size

    def test_t5_reads_its_own_width(self):
        from transformers import T5Config

        assert read_width({"model_type": "t5"}) == T5Config().d_model
        assert read_width({"model_type": "t5", "d_model": 768}) == 768

    def test_keys_of_one_checkpoint_share_a_row(self, recipe: Path):
        uses = checkpoint_uses(loaded(recipe))
        names = [row.name for row in checkpoint_rows(uses, examine_all(uses))]
        assert names == ["model.vision, model.match", "model.answer"]

    def test_only_what_the_recipe_uses_is_looked_for(self, recipe: Path):
        keys = [use.key for use in checkpoint_uses(loaded(recipe, "losses.itm=0", "model.second_vision=./none"))]
        assert keys == ["model.vision", "model.answer"]
        second = loaded(recipe, "model.second_stream=blip", "model.second_vision=./none")
        assert "model.second_vision" in [use.key for use in checkpoint_uses(second)]

    @pytest.mark.parametrize(
        ("override", "fault"),
        [
            ("model.match=./vqa", "is a BlipForQuestionAnswering; model.match expects BlipForImageTextRetrieval"),
            ("model.answer=./itm", "model.answer expects BlipForQuestionAnswering or T5ForConditionalGeneration"),
            ("model.match=./none", "./none: no such directory"),
            ("model.match=a/b/c", "a/b/c: no such directory, and no hub id"),
        ],
    )
    def test_what_does_not_fit_its_key_is_a_fault(self, recipe: Path, override: str, fault: str):
        uses = checkpoint_uses(loaded(recipe, override))
        found = [row.fault for row in checkpoint_rows(uses, examine_all(uses)) if row.fault is not None]
        assert len(found) == 1
        assert fault in found[0]

    @pytest.mark.parametrize(
        ("damage", "fault"),
        [
            (lambda path: (path / "config.json").unlink(), "no config.json"),
            (lambda path: (path / "config.json").write_text("{"), "config.json is damaged"),
            (lambda path: (path / "model.safetensors").unlink(), "no weights (model.safetensors or"),
            (lambda path: os.truncate(path / "model.safetensors", 60), "model.safetensors is damaged"),
            (lambda path: (path / "config.json").write_text("[]"), "config.json is damaged (no JSON object)"),
            (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer"),
            (lambda path: (path / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is damaged"),
        ],
    )
    def test_a_directory_that_is_not_whole_says_what_it_lacks(self, tmp_path: Path, damage, fault: str):
        path = write_checkpoint(tmp_path / "itm", ITM)
        assert examine(str(path), ["model.match"]).faults == []
        damage(path)
        assert [found for found in examine(str(path), ["model.match"]).faults if fault in found]

    def test_weights_in_parts_need_every_part(self, tmp_path: Path):
        path = write_checkpoint(tmp_path / "itm", ITM)
        (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
        parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
        expected = "1 of 2 weights files are missing, such as model-00002-of-00002.safetensors"
        assert examine(str(path), ["model.match"]).faults == [expected]

    def test_a_sentencepiece_file_alone_needs_the_package_that_reads_it(self, tmp_path: Path, monkeypatch):
        path = write_checkpoint(tmp_path / "t5", T5)
        (path / "tokenizer.json").rename(path / "spiece.model")
        for there in (True, False):
            monkeypatch.setattr(checkpoint_files, "find_spec", lambda _, there=there: object() if there else None)
            assert bool(examine(str(path), ["model.answer"]).faults) is not there

    def test_a_hub_id_is_found_in_the_cache_with_its_revision(self, recipe: Path, tmp_path: Path):
        repository = tmp_path / "hub" / "models--org--vqa"
        write_checkpoint(repository / "snapshots" / COMMIT, VQA)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        for reference in ("org/vqa", f"org/vqa@{COMMIT}"):
            row = rows_of(loaded(recipe, f"model.answer={reference}"))["model.answer"]
            assert row.fault is None
            assert f"revision {COMMIT}" in row.found

    def test_a_hub_id_that_is_missing_comes_with_both_ways_to_get_it(self, recipe: Path):
        rows = rows_of(loaded(recipe, "model.vision=org/itm@v2", "model.match=org/itm@v2"))
        row = rows["model.vision, model.match"]
        assert "run `hf download org/itm --revision v2" in row.fault
        online, offline, change = row.steps
        assert "--local-dir" not in online
        assert "--revision v2" in offline
        assert "--local-dir itm" in offline
        assert change.endswith("model.vision=./itm model.match=./itm")
        assert "HF_HUB_OFFLINE=1" in rows["hub cache"].found

    def test_what_captions_alone_need_keeps_no_run_from_starting(self, recipe: Path):
        row = rows_of(loaded(recipe, "pnp.captioner=org/captioner"))["pnp.captioner"]
        assert row.fault is None
        assert "training does not need it" in row.found
        assert row.steps[0].startswith("hf download org/captioner")


class TestWidths:
    def row(self, config: RunConfig) -> Row:
        uses = checkpoint_uses(config)
        return width_row(config.model, uses, examine_all(uses))

    def test_towers_that_read_different_widths_are_a_fault(self, recipe: Path, tmp_path: Path):
        write_checkpoint(tmp_path / "t5", T5, width=64)
        assert self.row(loaded(recipe)).fault is None
        assert "different widths [48, 64]" in self.row(loaded(recipe, "model.answer=./t5")).fault

    def test_a_tower_that_is_not_used_has_no_say(self, recipe: Path):
        assert self.row(loaded(recipe, "losses.itm=0", "model.match=scratch")).fault is None

    def test_the_vision_tower_may_be_wider_than_what_is_read(self, recipe: Path, tmp_path: Path):
        write_checkpoint(tmp_path / "large", ITM, width=64)
        row = self.row(loaded(recipe, "model.vision=./large"))
        assert (row.found, row.fault) == ("vision 64, fusion 64, read by match 48, read by answer 48", None)

    def test_but_not_where_the_matching_tower_looks_with_its_tokens(self, recipe: Path, tmp_path: Path):
        write_checkpoint(tmp_path / "large", ITM, width=64)
        config = loaded(recipe, "model.second_stream=efficient_sam_masks")
        assert self.row(config).fault is None
        config = loaded(recipe, "model.second_stream=efficient_sam_masks", "model.vision=./large")
        assert "which are 64 wide, and model.match reads 48" in self.row(config).fault

    def test_heads_that_do_not_divide_the_width_are_a_fault(self, recipe: Path):
        assert "model.fusion.heads: 7" in self.row(loaded(recipe, "model.fusion.heads=7")).fault


class TestEfficientSam:
    def test_the_hash_is_that_of_git(self, tmp_path: Path):
        path = tmp_path / "file"
        path.write_text("hello\n")
        assert git_blob_sha1(path) == "ce013625030ba8dba906f756967f9e9ca394464a"

    def official(self, recipe: Path, variant: str) -> Row | None:
        checkpoint = f"model.efficient_sam.checkpoint=weights/efficient_sam_{variant}.pt"
        return efficient_sam_row(loaded(recipe, f"model.efficient_sam.variant={variant}", checkpoint).model)

    @pytest.mark.parametrize(("variant", "zipped"), [("vitt", False), ("vits", True)])
    def test_what_is_missing_comes_with_address_hash_and_unpacking(self, recipe: Path, variant: str, zipped: bool):
        row = self.official(recipe, variant)
        name = f"efficient_sam_{variant}.pt{'.zip' if zipped else ''}"
        assert f"https://github.com/yformer/EfficientSAM/raw/main/weights/{name}" in row.fault
        assert efficient_sam_weights.BLOB_SHA1[name] in row.fault
        assert any(step.startswith(f"git hash-object weights/{name}") for step in row.steps)
        assert any("zipfile" in step for step in row.steps) == zipped

    def test_a_file_that_is_not_the_official_one_is_told_from_it(self, recipe: Path, tmp_path: Path, monkeypatch):
        path = tmp_path / "weights" / "efficient_sam_vitt.pt"
        path.parent.mkdir()
        path.write_bytes(b"cut off")
        assert f"is {git_blob_sha1(path)}, expected af883c49" in self.official(recipe, "vitt").fault
        monkeypatch.setitem(efficient_sam_file.BLOB_SHA1, path.name, git_blob_sha1(path))
        assert self.official(recipe, "vitt").found.endswith("the official file")

    def test_an_unpacked_file_is_compared_with_its_archive(self, recipe: Path, tmp_path: Path, monkeypatch):
        path = tmp_path / "weights" / "efficient_sam_vits.pt"
        path.parent.mkdir()
        path.write_bytes(b"weights")
        assert "not compared" in self.official(recipe, "vits").found
        archive = path.with_name("efficient_sam_vits.pt.zip")
        with zipfile.ZipFile(archive, "w") as file:
            file.write(path, path.name)
        monkeypatch.setitem(efficient_sam_file.BLOB_SHA1, archive.name, git_blob_sha1(archive))
        assert self.official(recipe, "vits").found.endswith("the official file")
        path.write_bytes(b"Weights")
        assert "is not what efficient_sam_vits.pt.zip holds" in self.official(recipe, "vits").fault

    def test_exported_weights_are_readable_and_hold_what_is_asked_of_them(self, recipe: Path, tmp_path: Path):
        def row(*overrides: str) -> Row:
            return efficient_sam_row(loaded(recipe, *overrides).model)

        assert row().fault is None
        assert "image encoder alone" in row("model.second_stream=efficient_sam_masks").fault
        assert row("model.second_stream=none") is None
        os.truncate(tmp_path / "sam.safetensors", 40)
        assert "damaged" in row().fault
        (tmp_path / "sam.safetensors").unlink()
        assert "sam.safetensors not found" in row().fault
