"""What is there is found and described, what is not is named in one line with its way out, and no network is asked."""

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from model.efficient_sam import weights as efficient_sam_weights
from model.towers import checkpoint_files
from shards.errors import ConfigError
from shards.format.index import INDEX_NAME, SplitIndex, encode_index
from tests.corpora import build_corpus
from trainer import cli
from trainer.config import RunConfig, load_config
from trainer.config.schema import REPOSITORY
from trainer.doctor import efficient_sam_file, machine
from trainer.doctor.checkpoints import (
    checkpoint_rows,
    checkpoint_uses,
    examine,
    examine_all,
    read_width,
    width_row,
)
from trainer.doctor.efficient_sam_file import efficient_sam_row, git_blob_sha1
from trainer.doctor.machine import engine_start_row, gpu_row, machine_rows, runs_on
from trainer.doctor.packages import is_at_least, lower_bounds, package_rows
from trainer.doctor.recipe import recipe_rows
from trainer.doctor.table import Row, Section, faults, render
from trainer.training.preflight import preflight

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ITM, VQA, CAPTIONER = "BlipForImageTextRetrieval", "BlipForQuestionAnswering", "BlipForConditionalGeneration"
T5 = "T5ForConditionalGeneration"


def write_checkpoint(directory: Path, architecture: str, *, width: int = 48) -> Path:
    """The files of a checkpoint, with weights that no model would take."""
    directory.mkdir(parents=True)
    sizes = {"model_type": "t5", "d_model": width} if architecture == T5 else {"vision_config": {"hidden_size": width}}
    config = {"architectures": [architecture], "model_type": "blip", **sizes}
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"one": np.zeros(3, np.float32)}, directory / "model.safetensors")
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Path:
    """A recipe that can run: two splits, three checkpoints, EfficientSAM's encoder, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    train, val = (build_corpus(tmp_path / split, num_images=3)[0] for split in ("train", "val"))
    for name, architecture in (("itm", ITM), ("vqa", VQA)):
        write_checkpoint(tmp_path / name, architecture)
    save_file({"image_encoder.one": np.zeros(3)}, tmp_path / "sam.safetensors", {"embed_dim": "12"})
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"data: {{train: {train}, val: {val}, workers: 0}}\nbatch: {{visits: 8, micro_visits: 2}}\n"
        "model: {vision: ./itm, match: ./itm, answer: ./vqa, fusion: {heads: 4},\n"
        "  efficient_sam: {variant: custom, checkpoint: sam.safetensors}}\n"
    )
    return path


def loaded(recipe: Path, *overrides: str) -> RunConfig:
    return load_config(recipe, overrides)


def rows_of(config: RunConfig) -> dict[str, Row]:
    return {row.name: row for row in recipe_rows(config)}


class TestPackages:
    def test_every_requirement_of_setup_py_has_a_bound_that_is_checked(self):
        listed = [line for line in (REPOSITORY / "setup.py").read_text().splitlines() if line.startswith('    "')]
        assert {f'    "{name}>={bound}",' for name, bound in lower_bounds().items()} == set(listed)

    @pytest.mark.parametrize(
        ("version", "bound", "enough"),
        [
            ("2.15.0+cu132", "2.10", True),
            ("2.9.1", "2.10", False),
            ("5.3.0rc1", "5.3", True),
            ("12", "12.0", True),
            ("0.2", "0.2.1", False),
        ],
    )
    def test_versions_compare_by_their_numbers(self, version: str, bound: str, enough: bool):
        assert is_at_least(version, bound) == enough

    def test_what_is_missing_or_too_old_comes_with_the_command_that_installs_it(self):
        bounds = {"deepspeed": "0.19.8", "peft": "0.18", "torch": "2.10"}
        versions = {"deepspeed": "0.19.5", "torch": "2.10.0"}
        found = {row.name: row for row in package_rows(bounds, versions.get)}
        assert found["peft"].fault == "not installed; run `pip install -U 'peft>=0.18'`"
        assert found["deepspeed"].fault.startswith("0.19.5 is too old; run `DS_BUILD_OPS=0 pip install -U 'deepspeed")
        assert found["torch"].fault is None


class TestMachine:
    @pytest.mark.parametrize(
        ("capability", "architectures", "fits"),
        [
            ((9, 0), ["sm_80", "sm_90"], True),
            ((8, 6), ["sm_80", "sm_90"], True),
            ((7, 0), ["sm_75", "sm_80", "compute_80"], False),
            ((12, 0), ["sm_90", "compute_90"], True),
            ((10, 3), ["sm_90a", "sm_100a"], False),
            ((10, 0), ["sm_90a", "sm_100a"], True),
        ],
    )
    def test_a_gpu_runs_builds_of_its_major_version_and_older_ptx(self, capability, architectures, fits: bool):
        assert runs_on(capability, architectures) == fits

    def test_a_gpu_says_its_precisions_and_whether_torch_has_kernels_for_it(self):
        new, old = (gpu_row(0, "X", 2**34, capability, ["sm_80"]) for capability in ((8, 9), (7, 0)))
        assert (new.found, new.fault) == ("X, 16.0 GiB, compute capability 8.9, fp16 and bf16", None)
        assert "fp16, no bf16" in old.found
        assert "no kernels for compute capability 7.0 (it has sm_80)" in old.fault

    def test_deepspeed_starts_where_no_compiler_is_found(self, monkeypatch):
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        monkeypatch.setenv("RANK", "3")  # what a launcher may have left must not count
        row = engine_start_row()
        assert row.fault is None, row.fault
        assert "without a compiler" in row.found

    def test_a_start_that_fails_is_told_by_its_last_line(self):
        row = engine_start_row("trainer.doctor.nothing")
        assert "No module named trainer.doctor.nothing" in row.fault
        assert "\n" not in row.fault

    def test_every_part_of_the_machine_has_a_row(self, monkeypatch):
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        monkeypatch.setattr(machine, "engine_start_row", lambda: Row("deepspeed starts", "yes"))
        names = [row.name for row in machine_rows()]
        expected = {"python", "torch", "ranks", "cpu", "memory", "disk", "shared memory", "deepspeed starts"}
        assert expected <= set(names)
        assert any(name.startswith("gpu") for name in names)


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


class TestData:
    def test_a_missing_split_comes_with_the_command_that_builds_it(self, recipe: Path):
        rows = rows_of(loaded(recipe, "data.train=gqa/train", "data.testdev=gqa/testdev", "data.image_size=384"))
        build = "duoflow shards build --format gqa --questions {0}_balanced_questions.json --images images "
        build += "--resize 384 --out gqa/{0}"
        assert rows["data.train"].fault.endswith(f"run `{build.format('train')}`")
        assert rows["data.val"].fault is None
        assert rows["data.testdev"].fault is None
        assert rows["data.testdev"].steps == (build.format("testdev"),)

    def test_a_shard_that_is_cut_off_is_found_by_its_size(self, recipe: Path, tmp_path: Path):
        tar = next((tmp_path / "val").rglob("*.tar"))
        os.truncate(tar, tar.stat().st_size - 512)
        assert f"are missing or cut off, such as {tar.name}" in rows_of(loaded(recipe))["data.val"].fault

    def test_shards_without_answers_cannot_train(self, recipe: Path, tmp_path: Path):
        (tmp_path / "blind").mkdir()
        counts = {"images": 0, "questions": 0, "answered": 0}
        index = SplitIndex(reader="gqa", sources=[], options={}, counts=counts, answers={}, groups={}, shards=[])
        (tmp_path / "blind" / INDEX_NAME).write_bytes(encode_index(index))
        assert "no question has an answer" in rows_of(loaded(recipe, "data.train=blind"))["data.train"].fault


class TestRecipe:
    def test_a_recipe_that_can_run_has_no_fault_and_passes_the_checks_of_a_start(self, recipe: Path):
        rows = rows_of(loaded(recipe))
        assert [row for row in rows.values() if row.fault is not None] == []
        assert rows["checks of a start"].found == "passed"

    @pytest.mark.parametrize(
        "override",
        [
            "data.train=null",
            "data.val=.",
            "engine.processes=3",
            "engine.policy=none.json",
            "initialize_from=runs/none",
            "model.efficient_sam.checkpoint=sam.pt",
            "model.vision=./blip",
            "model.answer=val",
        ],
    )
    def test_what_a_start_would_refuse_is_a_fault(self, recipe: Path, override: str):
        config = loaded(recipe, override)
        with pytest.raises(ConfigError):
            preflight(config)
        assert [row for row in rows_of(config).values() if row.fault is not None]

    def test_batches_that_shared_memory_cannot_hold_are_a_fault(self, recipe: Path):
        rows = rows_of(loaded(recipe, "data.workers=100000", "data.image_size=30000"))
        assert "lower data.workers" in rows["loader"].fault

    @pytest.mark.usefixtures("recipe")
    def test_no_network_is_asked_and_nothing_heavy_is_imported(self):
        code = (
            "import socket, sys\n"
            "def refuse(*_): raise AssertionError('the network was asked')\n"
            "socket.socket.connect = socket.getaddrinfo = refuse\n"
            "from trainer.config import load_config\nfrom trainer.doctor.recipe import recipe_rows\n"
            "recipe_rows(load_config('tiny.yaml', ['model.answer=org/vqa', 'pnp.reader=org/t5']))\n"
            "print(sorted({'transformers', 'deepspeed', 'peft', 'webdataset'} & set(sys.modules)))"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", code]
        shown = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        assert (shown.returncode, shown.stdout) == (0, "[]\n"), shown.stderr


class TestCommand:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr(machine, "machine_rows", lambda: [Row("python", "3.11.7")])
        monkeypatch.setattr("trainer.doctor.packages.lower_bounds", lambda: {"numpy": "1.0"})
        monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))

    def test_a_recipe_that_can_run_ends_with_0(self, recipe: Path, capsys):
        assert cli.main(["doctor", str(recipe)]) == 0
        shown = capsys.readouterr()
        assert shown.out.endswith(f"{recipe}: nothing is missing\n")
        assert shown.err == ""

    def test_without_a_recipe_only_the_machine_counts(self, capsys):
        assert cli.main(["doctor"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:4]] == [
            "machine",
            "python",
            "packages",
            "numpy",
        ]

    def test_each_missing_thing_is_a_line_and_the_table_is_whole(self, recipe: Path, capsys):
        overrides = ["model.answer=org/vqa", "data.train=none", "model.efficient_sam.checkpoint=sam.pt"]
        assert cli.main(["doctor", str(recipe), *overrides]) == 2
        shown = capsys.readouterr()
        keys = ["model.answer", "model.efficient_sam.checkpoint", "data.train"]
        assert [line.split(": ")[1] for line in shown.err.splitlines()] == keys
        assert all(f"\n! {key} " in shown.out for key in keys)
        assert "\n  data.val " in shown.out

    def test_a_recipe_with_mistakes_is_one_line_for_each(self, recipe: Path, capsys):
        assert cli.main(["doctor", str(recipe), "optim.lrr=3", "limits.epochs=0"]) == 2
        shown = capsys.readouterr()
        assert len(shown.err.splitlines()) == 2
        assert "did you mean optim.lr?" in shown.err
        assert "numpy" in shown.out

    def test_a_torch_that_does_not_import_leaves_the_rest_of_the_table(self, recipe: Path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "trainer.doctor.recipe", None)
        assert cli.main(["doctor", str(recipe)]) == 2
        assert "install the packages first" in capsys.readouterr().err


def test_the_table_marks_faults_and_lists_them_once():
    sections = [Section("machine", [Row("a", "fine"), Row("long name", "bad", "is bad; mend it", ("mend",))])]
    assert render(sections).splitlines() == [
        "machine",
        "  a          fine",
        "! long name  bad",
        "               mend",
    ]
    assert faults(sections) == ["long name: is bad; mend it"]
