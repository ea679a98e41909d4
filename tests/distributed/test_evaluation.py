"""An evaluation over ranks: the scores and the files of one process, from any number of them."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from shards.format.index import read_index
from tests.distributed.forked_ranks import fork_ranks
from tests.distributed.launch import run
from tests.runs import NO_COMPILER, Project
from tests.unit.trainer.inference.test_answer import finished_run
from trainer.inference.evaluate import Evaluated, evaluate_export
from trainer.inference.rank import from_json
from trainer.run_directory import RunDirectory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluated")
    return finished_run(Project.write(directory), directory / "runs" / "tiny")


def over_ranks(path: Path, aside: Path, processes: int, split: str = "val", **how: object) -> tuple[int, str]:
    """The exit code and what ranks said that evaluate; the scores are `aside/scores.json`."""
    asked = {"images": "own", "weights": "trained", "pipeline": "direct", "overrides": [], **how}
    file, ranks = aside / "asked.json", aside / "ranks"
    file.write_text(json.dumps({"path": str(path), "split": split, "scores": str(aside / "scores.json"), **asked}))
    ranks.mkdir()
    done = fork_ranks("trainer.inference.rank", str(file), str(ranks), processes=processes, env=NO_COMPILER)
    return done.returncode, done.stdout


def assert_same_scores(found: Evaluated, expected: Evaluated) -> None:
    assert found.counts == expected.counts
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
    losses = {name for name in expected.metrics if name.endswith("loss")}
    for name in expected.metrics.keys() - losses:
        assert found.metrics[name] == expected.metrics[name], name


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_three_ranks_score_and_write_what_one_does(finished: Path, tmp_path: Path):
    expected = evaluate_export(finished, "val")
    submission, table = expected.predictions.read_bytes(), rows(expected.table)
    expected.predictions.unlink()
    expected.table.unlink()
    assert over_ranks(finished, tmp_path, 3)[0] == 0
    found = from_json((tmp_path / "scores.json").read_text())
    assert_same_scores(found, expected)
    assert found.predictions.read_bytes() == submission
    for one, other in zip(rows(found.table), table, strict=True):
        assert float(one.pop("probability")) == pytest.approx(float(other.pop("probability")), rel=2e-3)  # 4 digits
        assert one == other


def test_exchanged_images_are_those_of_one_process(finished: Path, tmp_path: Path):
    assert over_ranks(finished, tmp_path, 2, images="shuffled")[0] == 0
    found = from_json((tmp_path / "scores.json").read_text())
    assert_same_scores(found, evaluate_export(finished, "val", images="shuffled"))
    assert (found.predictions, found.table) == (None, None)


def test_the_command_takes_as_many_ranks_as_it_is_told(finished: Path, tmp_path: Path):
    scores = tmp_path / "scores.json"
    words = ["evaluate", str(finished), "--split", "val", "--json", str(scores), "engine.processes=2"]
    done = run([sys.executable, "-m", "trainer.cli", *words], env=NO_COMPILER, timeout_seconds=300)
    assert done.returncode == 0, done.stdout
    expected = evaluate_export(finished, "val")
    assert json.loads(scores.read_text())["counts"] == expected.counts
    assert f"written, to hand in: {expected.predictions}" in done.stdout


def test_an_image_that_one_rank_cannot_read_is_one_line(finished: Path, tmp_path: Path):
    damaged = tmp_path / "damaged"
    shutil.copytree(RunDirectory(finished).read_config().data.val, damaged)
    index = read_index(damaged)
    last = damaged / index.shards[-1].name
    last.write_bytes(last.read_bytes().replace(b"PNG", b"???"))
    code, said = over_ranks(finished, tmp_path, 2, "testdev", overrides=[f"data.testdev={damaged}"])
    assert code != 0
    assert len([line for line in said.splitlines() if str(last.name) in line]) == 1
    assert "Traceback" not in said
    assert not (tmp_path / "scores.json").exists()
