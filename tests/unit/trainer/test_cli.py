"""Arguments in, exit code out; a mistake is one line, and help waits for nothing heavy."""

import argparse
import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import cli
from trainer.config import load_config
from trainer.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]

LAUNCHER_OPTIONS = (
    "--hostfile",
    "--include",
    "--exclude",
    "--num_nodes",
    "--num_gpus",
    "--num_accelerators",
    "--master_port",
    "--master_addr",
    "--node_rank",
    "--launcher",
    "--launcher_args",
    "--module",
    "--no_python",
    "--no_local_rank",
    "--no_ssh",
    "--no_ssh_check",
    "--force_multi",
    "--save_pid",
    "--enable_each_rank_log",
    "--autotuning",
    "--elastic_training",
    "--bind_cores_to_rank",
    "--bind_core_list",
    "--ssh_port",
    "--venv_script",
    "--log_level",
    "--quiet",
)
"""Of `deepspeed`, whose parser sees the script's options too and finds a beginning of one of its own ambiguous."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("batch: {visits: 4, micro_visits: 2}\nmodel: {freeze: []}\n")
    return path


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """What `train` was asked to start; nothing starts."""
    calls: list[tuple] = []
    fake = types.ModuleType("trainer.commands.start")
    fake.start_training = lambda recipe, overrides, fresh, **_: calls.append((recipe, overrides, fresh)) or 75
    fake.prepare_training = None
    monkeypatch.setitem(sys.modules, "trainer.commands.start", fake)
    return calls


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of all its verbs."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def duoflow(*words: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "import sys; from trainer.cli import main; sys.exit(main())", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


def test_help_imports_neither_torch_nor_deepspeed():
    code = (
        "import sys\nfrom trainer.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'deepspeed', 'transformers', 'webdataset'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert "key=value" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"


def test_the_verbs_are_those_that_are_built():
    verbs = next(action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    built = {"init", "scenes", "shards", "train", "evaluate", "answer", "export", "score", "tasks", "doctor", "bench"}
    assert set(verbs.choices) == built | {
        "launch",
        "attach",
        "stop",
        "status",
        "runs",
        "completion",
        "features",
        "report",
        "serve",
    }
    assert list(verbs.choices) == list(cli.VERBS)


SAME_MEANING = {"--hostfile"}
"""Ours and the launcher's are one file, and ours is never handed on."""


def test_every_verb_has_a_handler_and_no_option_that_the_launcher_could_take_for_its_own():
    for parser in parsers(cli.build_parser()):
        options = {option for action in parser._actions for option in action.option_strings}
        for option in options - SAME_MEANING:
            assert not option.startswith("--") or not any(name.startswith(option) for name in LAUNCHER_OPTIONS), option


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["trian"], "argument VERB: invalid choice: 'trian'"),
            (["train"], "the following arguments are required: RECIPE"),
            (["train", "none.yaml"], "none.yaml: no such file"),
            (["train", "none.yaml", "--frsh"], "unknown argument --frsh"),
            (["train", "none.yaml", "--dry"], "unknown argument --dry"),
            (["train", "none.yaml", "--limit", "x"], "argument --limit: invalid int value: 'x'"),
            (["evaluate", "runs/none", "--split", "tset"], "argument --split: invalid choice: 'tset'"),
            (["evaluate", "runs/none", "--split", "val", "--more"], "unknown argument --more"),
            (["evaluate", "runs/none", "--split", "val"], "runs/none: no run here"),
        ],
    )
    def test_each_is_one_line_on_stderr_and_exit_code_2(self, capsys, words: list[str], line: str):
        assert cli.main(words) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"duoflow: {line}")
        assert output.err.count("\n") == 1

    def test_several_faults_of_a_recipe_are_a_line_each(self, capsys, recipe: Path):
        assert cli.main(["train", str(recipe), "optim.lr=fast", "limits.epochs=0"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            "duoflow: optim.lr=fast: optim.lr: expected a number, got fast",
            "duoflow: limits.epochs=0: limits.epochs: expected at least 1, got 0",
        ]

    @pytest.mark.usefixtures("started")
    def test_ctrl_c_is_130_and_no_traceback(self, capsys, recipe: Path, monkeypatch):
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(sys.modules["trainer.commands.start"], "start_training", interrupt)
        assert cli.main(["train", str(recipe)]) == 130
        assert capsys.readouterr().err == "duoflow: interrupted\n"

    @pytest.mark.usefixtures("started")
    def test_a_full_disk_is_one_line_and_another_fault_of_ours_is_not_hidden(self, recipe: Path, monkeypatch, capsys):
        def fail(number: int) -> None:
            raise OSError(number, os.strerror(number), "runs/tiny/predictions/val.json")

        monkeypatch.setattr(
            sys.modules["trainer.commands.start"], "start_training", lambda *_, **__: fail(errno.ENOSPC)
        )
        assert cli.main(["train", str(recipe)]) == 2
        line = "duoflow: runs/tiny/predictions/val.json: No space left on device; see to this disk"
        assert capsys.readouterr().err.startswith(line)
        monkeypatch.setattr(
            sys.modules["trainer.commands.start"], "start_training", lambda *_, **__: fail(errno.ENOENT)
        )
        with pytest.raises(FileNotFoundError):
            cli.main(["train", str(recipe)])

    @pytest.mark.usefixtures("started")
    def test_anything_else_is_not_hidden(self, recipe: Path, monkeypatch):
        monkeypatch.setattr(sys.modules["trainer.commands.start"], "start_training", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(["train", str(recipe)])


class TestTrain:
    def test_overrides_may_stand_before_and_behind_options(self, recipe: Path, started: list[tuple]):
        words = ["train", str(recipe), "optim.lr=1", "--fresh", "run.seed=2", "--limit", "5", "run.name=x"]
        assert cli.main(words) == 75
        assert started == [(recipe, ["optim.lr=1", "run.seed=2", "run.name=x", "data.limit=5"], True)]

    def test_without_options_an_old_run_goes_on(self, recipe: Path, started: list[tuple]):
        cli.main(["train", str(recipe)])
        assert started == [(recipe, [], False)]

    def test_print_config_prints_yaml_that_is_the_same_recipe(self, recipe: Path, started, capsys):
        assert cli.main(["train", str(recipe), "optim.lr=0.5", "--print-config"]) == 0
        printed = recipe.with_name("printed.yaml")
        printed.write_text(capsys.readouterr().out)
        assert load_config(printed) == load_config(recipe, ["optim.lr=0.5"])
        assert started == []

    def test_a_reader_who_leaves_early_is_no_error(self, recipe: Path):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = duoflow("train", str(recipe), "--print-config", stdout=writing)
        finally:
            os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_dry_run_says_what_would_happen_and_starts_nothing(self, recipe: Path, started, capsys, monkeypatch):
        fake = types.ModuleType("trainer.commands.dry_run")
        fake.dry_run = lambda config, *, fresh, **_: f"{config.limits.epochs} epochs, fresh: {fresh}"
        monkeypatch.setitem(sys.modules, "trainer.commands.dry_run", fake)
        assert cli.main(["train", str(recipe), "--dry-run", "limits.epochs=3"]) == 0
        assert cli.main(["train", str(recipe), "--dry-run", "--fresh"]) == 0
        assert (capsys.readouterr().out, started) == ("3 epochs, fresh: False\n10 epochs, fresh: True\n", [])


class TestEvaluate:
    def test_scores_are_printed_and_written(self, recipe: Path, tmp_path: Path, capsys, monkeypatch):
        run = RunDirectory(tmp_path / "runs" / "tiny")
        run.create()
        run.write_config(load_config(recipe))
        metrics = {"testdev/accuracy": 0.75, "testdev/structural/verify": 0.5, "testdev/answer_loss": float("nan")}
        counts = {"testdev/count": 1200, "testdev/structural/verify/count": 4}
        fake = types.ModuleType("trainer.inference.evaluate")
        asked = {"split": "testdev", "images": "own", "weights": "trained", "pipeline": "direct", "overrides": []}
        found = types.SimpleNamespace(
            metrics=metrics, counts=counts, predictions=Path("predictions/testdev.json"), table=None
        )
        fake.evaluated_config = lambda path, *_: RunDirectory(path).read_config()
        fake.evaluate_export = lambda path, **how: found if (path, how) == (run.path, asked) else None
        monkeypatch.setitem(sys.modules, "trainer.inference.evaluate", fake)
        scores = tmp_path / "scores.json"
        assert cli.main(["evaluate", str(run.path), "--split", "testdev", "--json", str(scores)]) == 0
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
            ["testdev/accuracy", "0.7500", "of", "1,200"],
            ["testdev/structural/verify", "0.5000", "of", "4"],
            ["testdev/answer_loss", "nan"],
            ["written,", "to", "hand", "in:", "predictions/testdev.json"],
            ["written,", "scores:", str(scores)],
        ]
        assert json.loads(scores.read_text()) == {
            "split": "testdev",
            "metrics": {**metrics, "testdev/answer_loss": None},
            "counts": counts,
        }
