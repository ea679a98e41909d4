"""A difference between hosts is refused before the first step, in a line or a table that names the host."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.corpora import build_corpus
from tests.distributed.training_runs import DROPOUT
from tests.multinode.lab import ROOT, Host
from tests.multinode.ranks import DONE, KILLED, LOGIN, MISTAKE, Crew, Start, next_port
from tests.multinode.runs import ENDLESS, ENGINE, Project, Run
from tests.runs import TOTAL_STEPS, write_recipe

CODE = ("shards", "model", "trainer", "launch", "ds_configs")


def _assert_refused(start: Start, run: Run, *words: str) -> None:
    assert start.codes() == [MISTAKE] * len(start.ranks), start.said
    status = run.status
    assert (status["state"], status["exit_code"], status["global_step"]) == ("failed", MISTAKE, None)
    for word in words:
        assert word in status["message"], status["message"]
        assert word in start.said
    assert "Traceback" not in start.said
    assert not run.directory.metrics.exists(), "no step was taken"


def test_another_recipe_is_refused(two: tuple[Host, Host], crew: Crew, project: Project):
    words = (project.recipe, "run.name=other_recipe")
    start = crew.start(two, *words, own={1: (*words, "optim.lr=0.1")})
    _assert_refused(start, project.run("other_recipe"), two[1].name, "optim.lr", "0.1")


def test_other_code_is_refused(two: tuple[Host, Host], crew: Crew, project: Project, tmp_path: Path):
    """Rank 1 is a process of its own here: the code of a warm host is read already."""
    for name in CODE:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    schedules = tmp_path / "trainer/engine/schedules.py"
    schedules.write_text(schedules.read_text() + "\nWARMUP_FACTOR = 0.1\n")
    port = next_port()
    words = ("run.name=other_code", "engine.start_timeout_seconds=100")
    environment = {
        **LOGIN,
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": two[0].name,
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(tmp_path),
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-m", "trainer.train", str(project.recipe), *words]
    start = crew.start(two, project.recipe, *words, only=[0], port=port)
    done = two[1].run(command, environment=environment, cwd=tmp_path, timeout_seconds=200)
    assert done.returncode == MISTAKE, done.stdout + done.stderr
    _assert_refused(start, project.run("other_code"), two[1].name, "trainer/engine/schedules.py")


@pytest.fixture(scope="module")
def twins(two: tuple[Host, Host], project: Project) -> Iterator["Twins"]:
    """A recipe over shards that each host has on a disk of its own."""
    made = Twins(two, project)
    with made.second_disk():
        yield made


class Twins:
    def __init__(self, two: tuple[Host, Host], project: Project) -> None:
        self._two, self._project = two, project
        self.place = project.directory / "twins"
        self.place.mkdir()
        data = {split: str(self.place / split) for split in ("train", "val")}
        for split, source in project.data.items():
            shutil.copytree(source, data[split])
        self.recipe = write_recipe(project.directory / "twins.yaml", data, engine=ENGINE)

    @contextmanager
    def second_disk(self) -> Iterator[None]:
        with self._two[1].own_disk(self.place) as seen:
            self.seen = seen
            self.copy()
            yield

    def copy(self, **sources: Path) -> Path:
        """Give the second host shards, by split in place of the first host's; where this machine finds them."""
        for split in ("train", "val"):
            shutil.rmtree(self.seen / split, ignore_errors=True)
            shutil.copytree(sources.get(split, self.place / split), self.seen / split)
        return self.seen


@pytest.mark.parametrize("images", [24, 12])
def test_other_shards_are_refused(
    images: int, two: tuple[Host, Host], crew: Crew, project: Project, twins: Twins, tmp_path: Path
):
    """With the number of images that makes as many steps, and with fewer."""
    other, _ = build_corpus(tmp_path / "train", num_images=images, seed=7)
    twins.copy(train=Path(other))
    name = f"other_shards_{images}"
    start = crew.start(two, twins.recipe, f"run.name={name}")
    _assert_refused(start, project.run(name), two[1].name, "data.train")


@pytest.mark.parametrize("fault", ["missing", "short"])
def test_a_shard_that_is_not_whole_on_one_host_is_refused(
    fault: str, two: tuple[Host, Host], crew: Crew, project: Project, twins: Twins
):
    seen = twins.copy()
    shard = sorted((seen / "train").glob("*.tar"))[-1]
    if fault == "missing":
        shard.unlink()
    else:
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size - 512)
    start = crew.start(two, twins.recipe, f"run.name=shard_{fault}")
    _assert_refused(start, project.run(f"shard_{fault}"), "rank 1", two[1].name, shard.name)


def test_equal_shards_on_disks_of_their_own_are_one_data_set(two: tuple[Host, Host], crew: Crew, twins: Twins):
    twins.copy()
    start = crew.start(two, twins.recipe, "run.name=twin_shards", "limits.max_steps=2")
    assert start.codes() == [DONE, DONE], start.said


class Apart:
    """Runs of which each host sees its own disk alone; the first host's is what this machine sees too."""

    def __init__(self, project: Project, seen: Path, place: Path) -> None:
        self.recipe = write_recipe(
            project.directory / "apart.yaml",
            project.data,
            run={"directory": str(place), "seed": 3},
            engine=ENGINE,
        )
        self._place, self._seen = place, seen

    def run(self, name: str) -> Run:
        return Run(self._place / name)

    def second(self, name: str) -> Run:
        """As the second host sees it."""
        return Run(self._seen / name)


@pytest.fixture
def apart(two: tuple[Host, Host], project: Project) -> Iterator[Apart]:
    place = project.directory / "apart"
    with two[1].own_disk(place) as seen:
        yield Apart(project, seen, place)


def test_without_a_shared_disk_a_run_trains_saves_and_resumes_and_refuses_another_rank_0(
    two: tuple[Host, Host], crew: Crew, project: Project, apart: Apart
):
    """Towers are made from scratch: their tokenizer exists on rank 0's disk alone."""
    words = (apart.recipe, "run.name=split", *DROPOUT)
    start = crew.start(two, *words, "limits.max_steps=4")
    assert start.codes() == [DONE, DONE], start.said
    run = apart.run("split")
    assert not apart.second("split").directory.checkpoints.joinpath("last").exists()

    swapped = crew.start(two[::-1], *words)
    assert swapped.codes() == [MISTAKE, MISTAKE], swapped.said
    assert "--fresh" in swapped.said
    assert two[0].name in swapped.said
    assert run.progress("last")["global_step"] == 4, "nothing was overwritten"

    again = crew.start(two, *words)
    assert again.codes() == [DONE, DONE], again.said
    assert list(run.losses) == list(range(1, TOTAL_STEPS + 1))
    for limit in (("limits.max_steps=4",), ()):
        shared = crew.start(two, project.recipe, "run.name=not_split", *DROPOUT, *limit)
        assert shared.codes() == [DONE, DONE], shared.said
    expected = project.run("not_split")
    assert run.losses == expected.losses
    assert run.bits("last") == expected.bits("last")

    shutil.rmtree(run.directory.checkpoints)
    gone = crew.start(two, *words, "limits.epochs=3")
    assert gone.codes() == [MISTAKE, MISTAKE], gone.said
    assert "--fresh" in gone.said


def test_without_a_shared_disk_a_killed_rank_0_leaves_no_run_that_seems_to_go_on(
    two: tuple[Host, Host], crew: Crew, apart: Apart
):
    start = crew.start(two, apart.recipe, "run.name=headless", *ENDLESS)
    apart.run("headless").wait_for_step(2)
    start.ranks[0].signal("SIGKILL")
    codes = start.codes()
    assert codes[0] == KILLED
    assert codes[1] not in (DONE, MISTAKE), start.said
    status = apart.second("headless").status
    assert status["state"] == "failed"
    assert two[0].name in status["message"]
