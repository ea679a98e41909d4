"""What is there is found and described, what is not is named in one line with its way out, and no network is asked."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import ConfigError
from shards.format.index import INDEX_NAME, SplitIndex, encode_index
from tests.unit.trainer.doctor.recipe_files import loaded, rows_of
from trainer import cli
from trainer.config.schema import REPOSITORY
from trainer.doctor import machine
from trainer.doctor.machine import engine_start_row, gpu_row, machine_rows, runs_on
from trainer.doctor.packages import is_at_least, lower_bounds, package_rows
from trainer.doctor.table import Row, Section, faults, render
from trainer.training.preflight import preflight


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
