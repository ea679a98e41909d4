"""Shards built on a Ray cluster: the bytes of the local engine, whatever dies meanwhile."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shards.build.output_directory import STAGING_NAME
from tests.corpora import Corpus, write_corpus
from tests.unit.shards.build.builds import contents

pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[ray]; the dev extra does without its 240 MB")
from shards.build.ray_engine import SAMPLES
from tests.unit.shards.build.ray_cluster import ROOT, RayCluster, free_port

SECONDS = 600
TRIES = 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with RayCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.add_node("second")
        yield cluster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """More than three parts of pictures that take a moment each."""
    directory = tmp_path_factory.mktemp("corpus")
    return write_corpus(directory, num_images=3 * SAMPLES + 5, size=(800, 600), formats=("jpg", "jpg", "png"))


@pytest.fixture(scope="module")
def expected(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "out"
    assert finished(start(corpus, out, "--workers", 2)).returncode == 0
    return contents(out)


def start(corpus: Corpus, out: Path, *words: object, environment: dict[str, str] | None = None) -> subprocess.Popen:
    files = ["--questions", corpus.questions, "--images", corpus.images, "--out", out]
    command = ["shards", "build", "--format", "gqa", *files, "--shard-bytes", 40_960, "--resize", 64, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=out.parent,
        env={**(environment or os.environ), "PYTHONPATH": str(ROOT)},
    )


def start_on(cluster: RayCluster, corpus: Corpus, out: Path, *words: object) -> subprocess.Popen:
    return start(
        corpus, out, "--engine", "ray", "--ray-address", cluster.address, *words, environment=cluster.environment
    )


def finished(build: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        out, errors = build.communicate(timeout=SECONDS)
    finally:
        build.kill()
    return subprocess.CompletedProcess(build.args, build.returncode, out, errors)


def said(result: subprocess.CompletedProcess) -> list[str]:
    """Lines on stderr, without those that only a slow machine sees."""
    return [line for line in result.stderr.splitlines() if not re.match(r"[a-z ]+: [\d,]+ / [\d,]+ ", line)]


def stopped_in_the_middle(
    cluster: RayCluster, corpus: Corpus, out: Path, node: subprocess.Popen | None = None
) -> tuple[subprocess.Popen, psutil.Process]:
    """A build, and a worker of it (of a node, if one is given) that stands still and has not ended its part."""
    for _ in range(TRIES):
        build = start_on(cluster, corpus, out)
        while build.poll() is None:
            for path in (out / STAGING_NAME / "parts").glob("*.partial"):
                worker = psutil.Process(int(path.name.split(".")[-3]))
                if node is not None and worker not in cluster.processes(node):
                    continue
                worker.suspend()
                while worker.status() != psutil.STATUS_STOPPED:
                    time.sleep(0.001)
                if path.exists():
                    return build, worker
                worker.resume()
            time.sleep(0.002)
        shutil.rmtree(out)  # this machine was too slow to look, or too fast
    pytest.fail(f"no worker was met in the middle of a part in {TRIES} builds")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_the_local_engine(cluster, corpus, expected, tmp_path, workers):
    result = finished(start_on(cluster, corpus, tmp_path / "out", "--workers", workers))
    assert (result.returncode, said(result)) == (0, [])
    assert len(expected) > 3
    assert contents(tmp_path / "out") == expected
    again = finished(start_on(cluster, corpus, tmp_path / "out"))
    assert "already built, nothing changed" in again.stdout
    assert contents(tmp_path / "out") == expected


def test_skipped_images_and_a_limit_are_those_of_the_local_engine(cluster, corpus, tmp_path):
    holes = damaged(corpus, tmp_path)
    words = ["--on-missing", "skip", "--limit", 2 * SAMPLES + 3]
    results = [
        finished(start(holes, tmp_path / "local", "--workers", 0, *words)),
        finished(start_on(cluster, holes, tmp_path / "ray", *words)),
    ]
    assert [result.returncode for result in results] == [0, 0], results
    assert "left out: 1 missing image, 6 skipped questions, 1 unreadable image" in results[1].stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_killed_worker_costs_its_part_alone(cluster, corpus, expected, tmp_path):
    build, worker = stopped_in_the_middle(cluster, corpus, tmp_path / "out")
    worker.kill()
    result = finished(build)
    assert result.returncode == 0, result.stderr
    (line,) = said(result)
    assert f"process {worker.pid} on " in line
    assert "was killed in part " in line
    assert contents(tmp_path / "out") == expected


def test_a_lost_node_costs_the_parts_that_it_was_at(cluster, corpus, expected, tmp_path):
    node = cluster.add_node("third")
    build, _ = stopped_in_the_middle(cluster, corpus, tmp_path / "out", node)
    cluster.stop(node)
    result = finished(build)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out") == expected


def test_ctrl_c_ends_the_tasks_and_leaves_nothing(cluster, corpus, tmp_path):
    build, worker = stopped_in_the_middle(cluster, corpus, tmp_path / "out")
    build.send_signal(signal.SIGINT)
    worker.resume()  # a stopped process could not be told to end
    result = finished(build)
    assert result.returncode not in (0, 2)
    assert "stopped; nothing half-written is left" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("fault", ["unreadable image", "broken JSON", "path outside"])
def test_a_fault_is_the_line_of_the_local_engine(cluster, corpus, tmp_path, fault):
    broken = damaged(corpus, tmp_path, missing=False)
    words: list[object] = []
    if fault == "broken JSON":
        broken.questions.write_text(broken.questions.read_text()[:-50])
    elif fault == "path outside":
        text = broken.questions.read_text()
        broken.questions.write_text(text.replace('"imageId": "1050"', '"imageId": "../1050"'))
        words = ["--on-missing", "skip"]
    results = [
        finished(start(broken, tmp_path / "out", "--workers", 2, *words)),
        finished(start_on(cluster, broken, tmp_path / "out", *words)),
    ]
    assert [result.returncode for result in results] == [2, 2], results
    assert len(said(results[0])) == 1
    assert said(results[1]) == said(results[0])
    assert not (tmp_path / "out").exists()


def test_without_a_cluster_nothing_is_begun(corpus, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "RAY_ADDRESS": address}
    result = finished(start(corpus, tmp_path / "out", "--engine", "ray", environment=environment))
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = said(result)
    assert f"no Ray cluster answers at {address} (Connection refused); start one with `ray start --head`" in line
    assert not (tmp_path / "out").exists()


def test_a_node_with_other_code_is_refused(cluster, corpus, tmp_path):
    shutil.copytree(ROOT / "shards", tmp_path / "old" / "shards", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "old" / "shards" / "build" / "packing.py").open("a") as file:
        file.write("# an older version\n")
    node = cluster.add_node("outdated", PYTHONPATH=str(tmp_path / "old"))
    try:
        result = finished(start_on(cluster, corpus, tmp_path / "out"))
    finally:
        cluster.stop(node)
    assert result.returncode == 2
    (line,) = said(result)
    assert "(outdated): duoflow: code " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts need root and unshare")
@pytest.mark.parametrize("hidden", ["out", "images"])
def test_a_node_that_does_not_see_the_disk_is_named(cluster, corpus, tmp_path, hidden):
    place = tmp_path / "disk" if hidden == "out" else corpus.images
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    node = cluster.add_node("blind", before=["unshare", "--mount", "sh", "-c", script, str(place)])
    try:
        result = finished(start_on(cluster, corpus, tmp_path / "disk" / "out"))
    finally:
        cluster.stop(node)
    assert result.returncode == 2
    (line,) = said(result)
    assert "(blind): " in line
    assert str(place) in line
    assert "every node has to see --images and --out" in line
    assert not (tmp_path / "disk" / "out").exists()


def damaged(corpus: Corpus, directory: Path, *, missing: bool = True) -> Corpus:
    """A copy with an image in the second part that is no image and, if asked, one that is not there."""
    copy = write_corpus(directory / "damaged", num_images=0)
    shutil.copytree(corpus.images, copy.images, dirs_exist_ok=True, copy_function=os.link)
    shutil.copy(corpus.questions, copy.questions)
    files = sorted(copy.images.iterdir(), key=lambda path: path.stem)
    broken = files[SAMPLES + 4]
    broken.unlink()  # the other link stays whole
    broken.write_bytes(b"no image")
    if missing:
        files[5].unlink()
    return copy
