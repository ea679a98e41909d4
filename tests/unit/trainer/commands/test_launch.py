"""From `--hostfile` to the exit code, with an ssh that is a script: what is refused, handed over, run and shown."""

import json
import os
import socket
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from launch.processes.local import Outcome
from trainer.cli import main
from trainer.commands import launch, start
from trainer.run_directory import OCCUPIED, RunDirectory, Status

SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
echo "$1 $2" >> "$LOG"
sh -c "$2" | sed "s/\\"host\\": \\"[^\\"]*\\"/\\"host\\": \\"$1\\"/"
"""
# pdsh is started by DeepSpeed's runner alone, which these tests replace.
TOOLS = {"ssh": SSH, "pdsh": "#!/bin/sh\nexit 1\n"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A directory with a recipe, a hostfile of two hosts, and the tools."""
    (tmp_path / "bin").mkdir()
    for name, text in TOOLS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "asked"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(launch, "check_inputs", create_autospec(launch.check_inputs))
    monkeypatch.setattr(start, "check_start", create_autospec(start.check_start))
    (tmp_path / "tiny.yaml").write_text("batch: {visits: 4, micro_visits: 2}\nmodel: {freeze: []}\n")
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    return tmp_path


@pytest.fixture
def launched(monkeypatch) -> list[dict]:
    """The launches that were made; each leaves a status as ranks do, and its launcher returns another code."""
    made: list[dict] = []

    def run(command: list[str], **options: object) -> Outcome:
        made.append({"command": command, **options})
        RunDirectory(Path("runs/tiny")).write_status(Status(state="stopped", exit_code=75, message="saved"))
        return Outcome(255, stopped_early=False, killed=False)

    monkeypatch.setattr(launch, "run_launcher", run)
    return made


def written(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name not in {"bin", "tiny.yaml", "hosts", "asked"})


class TestTrain:
    def test_the_code_is_that_of_the_status(self, place: Path, launched: list[dict]):
        assert main(["train", "tiny.yaml", "--hostfile", "hosts", "--", "--master_port", "23456"]) == 75
        (made,) = launched
        run = place / "runs/tiny"
        assert made["command"][-3:] == ["--module", "trainer.train", f"{run}/config.yaml"]
        assert "--master_port=23456" in made["command"]
        assert made["environment"]["DS_ENV_FILE"] == f"{run}/launch/environment"
        assert (run / "launch/hostfile").read_text() == "127.0.0.1 slots=1\n127.0.0.2 slots=1\n"
        variables = dict(line.split("=", 1) for line in (run / "launch/environment").read_text().splitlines())
        assert variables[OCCUPIED] == str(run)
        assert variables["DS_ACCELERATOR"] == "cpu"

    def test_the_second_start_is_the_same_command(self, place: Path, launched: list[dict]):
        assert place.is_dir()
        assert [main(["train", "tiny.yaml", "--hostfile", "hosts"]) for _ in range(2)] == [75, 75]
        assert launched[0]["command"] == launched[1]["command"]

    def test_ranks_that_outlive_their_launcher_are_told_of_and_keep_their_status(self, place, monkeypatch, capsys):
        assert place.is_dir()
        left = Outcome(-9, stopped_early=False, killed=False, left=("127.0.0.2",))
        monkeypatch.setattr(launch, "run_launcher", lambda *_, **__: left)
        assert main(["train", "tiny.yaml", "--hostfile", "hosts"]) == 1
        status = RunDirectory(Path("runs/tiny")).read_status()
        assert status is not None
        assert status.state == "running"
        said = capsys.readouterr().err
        assert "ranks go on without it on 127.0.0.2; `duoflow attach runs/tiny`" in said

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--hostfile", "nowhere"], "nowhere: No such file or directory; expected a hostfile"),
            (["--hostfile", "hosts", "--", "--num_gpus=1"], "--num_gpus=1: not taken"),
            (["--hostfile", "hosts", "run.directory=$(touch evil)"], "a path is absolute and holds letters"),
            (["--hostfile", "hosts", "batch.visits=3", "batch.micro_visits=1"], "world sizes that fit"),
            (["--", "--master_port=1"], "flags of the deepspeed launcher after `--` are for --hostfile"),
            (["--hostfile", "hosts", "--dry-run"], "`duoflow launch hostfile RECIPE --hostfile F --dry-run`"),
            (["--hostfile", "hosts", "--prepare", "2"], "not allowed with argument"),
            (["--prepare", "0"], "expected a number from 1 on"),
        ],
    )
    def test_what_is_refused_is_one_line_and_nothing_is_written_or_asked(self, place, launched, capsys, words, says):
        assert main(["train", "tiny.yaml", *words]) == 2
        said = capsys.readouterr()
        assert says in said.err
        assert (said.err.count("\n"), said.out) == (1, "")
        assert (launched, written(place), (place / "asked").exists()) == ([], [], False)

    def test_a_busy_port_is_refused_and_nothing_is_written(self, place: Path, launched: list[dict], capsys):
        with socket.socket() as listener:
            listener.bind(("", 0))
            listener.listen()
            port = listener.getsockname()[1]
            assert main(["train", "tiny.yaml", "--hostfile", "hosts", "--", f"--master_port={port}"]) == 2
        assert f"host 127.0.0.1: port {port} is taken" in capsys.readouterr().err
        assert (launched, written(place)) == ([], [])

    def test_missing_pdsh_has_a_way_out(self, place: Path, capsys, monkeypatch):
        (place / "bin/pdsh").unlink()
        monkeypatch.setenv("PATH", f"{place}/bin")
        assert main(["train", "tiny.yaml", "--hostfile", "hosts"]) == 2
        said = capsys.readouterr().err
        assert "pdsh is not installed here: apt-get install pdsh" in said
        assert "--no-ssh" in said
        assert written(place) == []

    @pytest.mark.parametrize("value", ["$(touch evil)", "a b"])
    def test_a_hostile_value_in_the_environment_is_named(self, place: Path, monkeypatch, capsys, value: str):
        monkeypatch.setenv("NCCL_DEBUG", value)
        assert main(["train", "tiny.yaml", "--hostfile", "hosts"]) == 2
        assert "NCCL_DEBUG: " in capsys.readouterr().err
        assert written(place) == []


class TestHostfile:
    def test_a_dry_run_shows_a_command_for_each_node_and_writes_nothing(self, place: Path, capsys):
        assert main(["launch", "hostfile", "tiny.yaml", "--hostfile", "hosts", "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert [line for line in shown.splitlines() if line.startswith("# which")] == [
            "# which starts on 127.0.0.1",
            "# which starts on 127.0.0.2",
        ]
        assert written(place) == []

    def test_without_ssh_nobody_is_asked_and_the_files_lie_ready(self, place: Path, capsys):
        words = ["launch", "hostfile", "tiny.yaml", "--hostfile", "hosts", "--no-ssh"]
        assert main([*words, "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert (written(place), (place / "asked").exists()) == ([], False)
        assert main(words) == 0
        assert capsys.readouterr().out == shown
        assert [f"--no_ssh --node_rank={rank}" in shown for rank in (0, 1, 2)] == [True, True, False]
        assert OCCUPIED not in shown, "rank 0 has to take the lock by itself"
        assert (place / "runs/tiny/config.yaml").is_file()
        assert (place / "runs/tiny/launch/hostfile").is_file()


class TestPrepare:
    def test_the_path_alone_is_on_stdout_and_a_status_of_before_is_gone(self, place: Path, capsys):
        run = RunDirectory(Path("runs/tiny"))
        run.create()
        run.write_status(Status(state="stopped", exit_code=75))
        assert main(["train", "tiny.yaml", "--prepare", "2", "--fresh"]) == 0
        assert capsys.readouterr().out == f"{place}/runs/tiny/config.yaml\n"
        status = run.read_status()
        assert status is not None
        assert (status.state, status.exit_code) == ("running", None)

    def test_a_world_that_does_not_fit_writes_nothing(self, place: Path, capsys):
        assert main(["train", "tiny.yaml", "--prepare", "3"]) == 2
        assert "world sizes that fit" in capsys.readouterr().err
        assert written(place) == []

    def test_a_finished_run_prints_nothing_on_stdout(self, place: Path, capsys):
        assert main(["train", "tiny.yaml", "--prepare", "2"]) == 0
        RunDirectory(Path("runs/tiny")).write_status(Status(state="done", exit_code=0, global_step=4))
        capsys.readouterr()
        assert main(["train", "tiny.yaml", "--prepare", "2"]) == 0
        said = capsys.readouterr()
        assert (said.out, "nothing to do" in said.err) == ("", True)
        assert place.is_dir()


class TestKubernetes:
    def test_stdout_is_the_manifests_and_nothing_else(self, place: Path, capsys):
        words = ["launch", "k8s", "tiny.yaml", "optim.lr=0.5", "--gpus-per-node", "1", "run.name=My_run"]
        assert main(words) == 0
        made = json.loads(capsys.readouterr().out)
        assert [item["kind"] for item in made["items"]] == ["Service", "ConfigMap", "Job"]
        assert made["items"][2]["metadata"]["name"] == "my-run"
        assert "lr: 0.5" in made["items"][1]["data"]["config.yaml"]
        assert written(place) == []

    @pytest.mark.parametrize("words", [["--name", "A;b"], ["--image", "a b"], ["--nodes", "0"], ["--nodes", "3"]])
    def test_faults_print_no_manifest(self, place: Path, capsys, words: list[str]):
        assert main(["launch", "k8s", "tiny.yaml", "--gpus-per-node", "1", *words]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert place.is_dir()


class TestSlurm:
    def test_what_is_submitted_is_what_a_dry_run_shows(self, place: Path, capsys):
        (place / "bin/sbatch").write_text(f"#!/bin/sh\nexec cat > {place}/submitted\n")
        (place / "bin/sbatch").chmod(0o755)
        words = ["launch", "slurm", "tiny.yaml", "run.name=a+b", "--gpus-per-node", "1", "--name", "job"]
        assert main([*words, "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert not (place / "submitted").exists()
        assert main(words) == 0
        assert (place / "submitted").read_text() == shown
        assert "set -- tiny.yaml run.name=a+b" in shown

    def test_without_slurm_there_is_a_line(self, place: Path, monkeypatch, capsys):
        monkeypatch.setenv("PATH", f"{place}/bin")
        assert main(["launch", "slurm", "tiny.yaml", "--gpus-per-node", "1"]) == 2
        assert "sbatch is not installed here" in capsys.readouterr().err
