"""Files of a run are complete or old, one process owns a directory, and nothing secret is written down."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from launch.processes.ranks import forget_ranks, record_rank
from shards.errors import UserError
from trainer.config import load_config
from trainer.reporting.environment import collect_environment, git_state, harmless_variables
from trainer.run_directory import RunDirectory, Status, write_atomically, write_json


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "tiny")
    directory.create()
    return directory


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("batch: {visits: 4, micro_visits: 2}\nmodel: {freeze: []}\n")
    return path


class TestWriting:
    def test_a_file_has_the_new_content_and_nothing_lies_beside_it(self, tmp_path: Path):
        path = tmp_path / "made" / "file.txt"
        for content in (b"old and long", b"new"):
            write_atomically(path, content)
        assert path.read_bytes() == b"new"
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("broken", ["fsync", "replace"])
    def test_a_failure_leaves_the_old_content_and_nothing_beside_it(self, tmp_path: Path, monkeypatch, broken: str):
        path = tmp_path / "file.txt"
        write_atomically(path, b"old")

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os if broken == "fsync" else Path, broken, fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_the_content_is_on_disk_before_it_has_the_name(self, tmp_path: Path, monkeypatch):
        path, events = tmp_path / "file.txt", []
        fsync, replace = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
        monkeypatch.setattr(Path, "replace", lambda old, new: (events.append("replace"), replace(old, new))[1])
        write_atomically(path, b"content")
        assert events == ["fsync", "replace", "fsync"]

    def test_json_refuses_what_json_cannot_say(self, tmp_path: Path):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "x.json", {"loss": float("nan")})


class TestStatus:
    def test_it_is_read_back(self, run: RunDirectory):
        assert run.read_status() is None
        status = Status(state="stopped", exit_code=75, message="SIGTERM", global_step=12, epoch=1)
        run.write_status(status)
        assert run.read_status() == status

    def test_keys_that_a_later_version_adds_do_not_hurt(self, run: RunDirectory):
        run.status.write_text(json.dumps({"state": "done", "exit_code": 0, "weather": "fine"}))
        assert run.read_status() == Status(state="done", exit_code=0)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"exit_code": 0}'])
    def test_damage_is_named_with_the_way_out(self, run: RunDirectory, content: str):
        run.status.write_text(content)
        with pytest.raises(UserError, match=r"status\.json: damaged; remove this file"):
            run.read_status()


class TestDirectory:
    def test_its_configuration_is_read_back(self, run: RunDirectory, recipe: Path):
        assert run.read_config() is None
        config = load_config(recipe)
        run.write_config(config)
        assert run.read_config() == config

    def test_it_lies_where_the_configuration_says(self, recipe: Path):
        assert RunDirectory.of(load_config(recipe, ["run.directory=here"])).path == Path("here/tiny")

    def test_names_of_files(self, run: RunDirectory):
        paths = (run.metrics, run.rank_log(3), run.predictions("val"), run.environment, run.tensorboard, run.export)
        assert [str(path.relative_to(run.path)) for path in paths] == [
            "metrics.jsonl",
            "logs/rank3.log",
            "predictions/val.json",
            "environment.json",
            "tensorboard",
            "export",
        ]

    def test_old_runs_are_set_aside_under_the_next_free_number(self, run: RunDirectory):
        for number in (1, 2):
            run.create()
            (run.path / "mark").write_text(str(number))
            assert run.set_aside() == run.path.with_name(f"tiny.{number}")
        assert not run.path.exists()
        assert [(run.path.with_name(f"tiny.{number}") / "mark").read_text() for number in (1, 2)] == ["1", "2"]

    def test_one_process_holds_the_lock_and_leaves_it(self, run: RunDirectory):
        with run.lock(), pytest.raises(UserError, match="another process is training here"), run.lock():
            pass
        with run.lock():
            assert run.ranks.is_dir()

    def test_ranks_that_outlived_their_starter_keep_the_lock_from_others(self, run: RunDirectory):
        record_rank(run.ranks, 0)
        with pytest.raises(UserError, match=f"processes {os.getpid()} are training here"), run.lock():
            pass
        forget_ranks(run.ranks)
        with run.lock():
            assert run.ranks.is_dir()

    def test_the_lock_goes_with_a_directory_that_is_set_aside(self, run: RunDirectory):
        with run.lock():
            run.set_aside()
            run.create()
            with run.lock():
                assert run.ranks.is_dir()

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"file/run: cannot make the run's directory: Not a directory; set run\."):
            RunDirectory(tmp_path / "file" / "run").create()


class TestEnvironment:
    def test_it_is_plain_json_with_versions_hosts_and_devices(self):
        collected = collect_environment(hosts=["a", "a", "b"], devices=["cpu"] * 3)
        assert json.loads(json.dumps(collected)) == collected
        assert (collected["hosts"], collected["world_size"], collected["devices"]) == (["a", "b"], 3, ["cpu"] * 3)
        assert collected["versions"]["pydantic"][0].isdigit()

    def test_no_secret_is_written_down(self):
        secrets = ["HF_TOKEN", "HF_API_KEY", "DS_SECRET", "SLURM_PASSWORD", "HF_Passwd", "TORCH_AUTH_X", "HOME"]
        variables = dict.fromkeys(secrets, "hidden") | {"HF_ENDPOINT": "https://me:hidden@mirror.org/x"}
        assert harmless_variables(variables) == {"HF_ENDPOINT": "https://mirror.org/x"}

    def test_a_commit_with_changed_files_says_so(self, tmp_path: Path):
        git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
        clean = git_state(tmp_path)
        assert clean is not None
        assert (len(clean["commit"]), clean["dirty"]) == (40, False)
        (tmp_path / "new").write_text("")
        assert git_state(tmp_path) == {**clean, "dirty": True}
        (tmp_path / "inside").mkdir()
        assert git_state(tmp_path / "inside") is None
