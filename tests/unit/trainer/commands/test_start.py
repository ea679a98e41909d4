"""The same command goes on, a finished run says so, and the code that ranks leave comes back."""

import socket
from pathlib import Path

import pytest

from launch.processes.local import Outcome
from launch.processes.ranks import read_attendant, record_rank
from shards.errors import ConfigError, UserError
from tests.processes import leave_record
from trainer.commands import restarts, start
from trainer.commands.start import start_training
from trainer.config.exported import EXPORT_FILE, MANIFEST
from trainer.run_directory import RunDirectory, Status
from trainer.training.preflight import Machine

RUN = RunDirectory(Path("runs/tiny"))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "preflight", lambda *_, **__: Machine(2, 0, ()))
    path = tmp_path / "tiny.yaml"
    path.write_text("batch: {visits: 4, micro_visits: 2}\nmodel: {freeze: []}\n")
    return path


class Launches(list[dict]):
    """The launches that were made. Each writes the status `ends_with`, if any, and then the launcher returns 1."""

    ends_with: Status | None = Status(state="done", exit_code=0, message="10 epochs", global_step=40)

    def run(self, command: list[str], **options: object) -> Outcome:
        self.append({"command": command, "status": RUN.read_status(), **options})
        if self.ends_with is not None:
            RUN.write_status(self.ends_with)
        return Outcome(1, stopped_early=False, killed=False)


@pytest.fixture
def launches(monkeypatch) -> Launches:
    made = Launches()
    monkeypatch.setattr(start, "run_launcher", made.run)
    return made


def test_the_launcher_gets_the_resolved_configuration_by_its_full_path(recipe: Path, launches: Launches):
    assert start_training(recipe, ["optim.lr=0.5"]) == 0
    config = Path(launches[0]["command"][-1])
    assert config == RUN.config.resolve()
    assert config.is_absolute()
    written = RUN.read_config()
    assert written is not None
    assert written.optim.lr == 0.5
    assert (launches[0]["processes"], launches[0]["ranks"]) == (2, RUN.ranks)


def test_ranks_import_this_project_and_compute_on_the_cpu(recipe: Path, launches: Launches, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    start_training(recipe, [])
    environment = launches[0]["environment"]
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert environment["PYTHONPATH"].split(":")[0] == str(Path(start.__file__).parents[2])


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("stopped", 75), ("failed", 2), ("failed", 1)])
def test_the_code_of_the_status_is_returned_whatever_the_launcher_returns(recipe, launches, state, code):
    launches.ends_with = Status(state=state, exit_code=code)
    assert start_training(recipe, []) == code


def test_ranks_that_end_without_a_word_are_a_failure(recipe: Path, launches: Launches, capsys):
    launches.ends_with = None
    assert start_training(recipe, []) == 1
    assert "the ranks ended without a word (the launcher returned 1); see runs/tiny/logs" in capsys.readouterr().err
    status = RUN.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 1)


@pytest.mark.parametrize(
    ("outcome", "code", "state"),
    [
        (Outcome(-15, stopped_early=True, killed=False), 75, "stopped"),
        (Outcome(-9, stopped_early=False, killed=True), 1, "failed"),
    ],
)
@pytest.mark.usefixtures("recipe")
def test_a_run_that_was_stopped_without_saving_says_what_happened(outcome, code, state):
    RUN.create()
    RUN.write_status(Status(state="running", global_step=7))
    assert start.settle(RUN, outcome) == code
    status = RUN.read_status()
    assert status is not None
    assert (status.state, status.exit_code, status.global_step) == (state, code, 7)


@pytest.mark.usefixtures("recipe")
def test_a_killed_rank_is_named_before_what_the_others_could_see():
    run = RunDirectory(Path("runs/tiny"))
    run.create()
    leave_record(run.ranks, 0, 4_000_000, host=socket.gethostname(), started="1", exit_code=1)
    leave_record(run.ranks, 1, 4_000_001, host=socket.gethostname(), started="1")
    run.write_status(Status(state="failed", exit_code=1, message="rank 0 lost the other ranks", global_step=7))
    assert start.settle(run, Outcome(247, stopped_early=False, killed=False)) == 1
    status = run.read_status()
    assert status is not None
    assert status.message.startswith(
        f"rank 1 on {socket.gethostname()} (process 4000001) was ended by signal 9 (SIGKILL)"
    )
    assert status.message.endswith("; rank 0 lost the other ranks")
    assert status.global_step == 7


def test_faults_are_started_again_with_the_same_command(recipe: Path, launches: Launches, monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_WAIT_SECONDS", 0.0)
    launches.ends_with = Status(state="failed", exit_code=1, global_step=3)
    assert start_training(recipe, [], restarts=2) == 1
    assert len(launches) == 3
    assert {tuple(launch["command"][-1:]) for launch in launches} == {(str(RUN.config.resolve()),)}
    assert read_attendant(RUN.ranks) is None


def test_the_same_command_goes_on_after_a_stop(recipe: Path, launches: Launches):
    launches.ends_with = Status(state="stopped", exit_code=75, global_step=3, epoch=1)
    assert [start_training(recipe, []) for _ in range(2)] == [75, 75]
    assert (launches[0]["status"].global_step, launches[1]["status"].global_step) == (None, 3)
    assert {launch["status"].state for launch in launches} == {"running"}


class TestFinished:
    def test_a_finished_run_says_so_and_starts_nothing(self, recipe: Path, launches: Launches, capsys):
        assert [start_training(recipe, []) for _ in range(2)] == [0, 0]
        assert len(launches) == 1
        assert "runs/tiny is finished at step 40 (10 epochs); nothing to do" in capsys.readouterr().out

    def test_one_whose_export_does_not_stand_alone_is_started_to_write_it_anew(self, recipe: Path, launches: Launches):
        start_training(recipe, [])
        RUN.export.mkdir()
        (RUN.export / EXPORT_FILE).write_text("{}")
        start_training(recipe, [])
        assert len(launches) == 2
        (RUN.export / MANIFEST).write_text("{}")
        start_training(recipe, [])
        assert len(launches) == 2

    def test_it_goes_on_with_a_higher_limit(self, recipe: Path, launches: Launches):
        start_training(recipe, [])
        start_training(recipe, ["limits.epochs=20"])
        assert len(launches) == 2

    def test_another_learning_rate_alone_does_not_reopen_it(self, recipe: Path, launches: Launches):
        start_training(recipe, [])
        start_training(recipe, ["optim.lr=0.5"])
        assert len(launches) == 1

    def test_another_model_is_refused_even_then(self, recipe: Path, launches: Launches):
        start_training(recipe, [])
        with pytest.raises(ConfigError, match=r"runs/tiny: model\.fusion\.layers: was 3, is 4; this cannot change"):
            start_training(recipe, ["model.fusion.layers=4"])
        assert len(launches) == 1

    def test_fresh_sets_it_aside_and_starts_over_with_another_model(self, recipe: Path, launches: Launches):
        start_training(recipe, [])
        start_training(recipe, ["model.fusion.layers=4"], fresh=True)
        assert launches[1]["status"].global_step is None
        old, new = RunDirectory(Path("runs/tiny.1")).read_config(), RUN.read_config()
        assert old is not None
        assert new is not None
        assert (old.model.fusion.layers, new.model.fusion.layers) == (3, 4)

    @pytest.mark.usefixtures("launches")
    def test_fresh_without_an_old_run_sets_nothing_aside(self, recipe: Path):
        start_training(recipe, [], fresh=True)
        assert [path.name for path in Path("runs").iterdir()] == ["tiny"]


def test_changed_keys_that_matter_are_told(recipe: Path, launches: Launches, capsys):
    launches.ends_with = Status(state="stopped", exit_code=75)
    start_training(recipe, [])
    start_training(recipe, ["optim.lr=0.5", "logging.every_steps=1"])
    told = capsys.readouterr().out
    assert "runs/tiny: optim.lr: was 0.0001, is 0.5; the run goes on with the new value" in told
    assert "logging" not in told


class TestOneAtATime:
    def test_a_run_whose_ranks_still_train_is_not_started_again(self, recipe: Path, launches: Launches):
        record_rank(RUN.ranks, 0)
        for fresh in (False, True):
            with pytest.raises(UserError, match="are training here; stop them"):
                start_training(recipe, [], fresh=fresh)
        assert launches == []
        assert not Path("runs/tiny.1").exists()

    def test_two_commands_at_once_do_not_mix(self, recipe: Path, launches: Launches):
        RUN.create()
        with RUN.lock(), pytest.raises(UserError, match="another process is training here"):
            start_training(recipe, [])
        assert launches == []


def test_nothing_is_made_for_a_recipe_that_fails_its_checks(recipe: Path, monkeypatch):
    def refuse(_: object, *, fresh: bool) -> Machine:  # noqa: ARG001 - as it is called
        raise ConfigError("data.train: is not set")

    monkeypatch.setattr(start, "preflight", refuse)
    with pytest.raises(ConfigError):
        start_training(recipe, [])
    assert not Path("runs").exists()
