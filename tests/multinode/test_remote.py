"""Shards on a host that cannot be reached for a minute: no sample is lost, and no bit differs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.corpora import build_corpus
from tests.distributed.training_runs import DROPOUT
from tests.multinode.lab import POLL_SECONDS, Host
from tests.multinode.ranks import DONE, END_SECONDS, Crew
from tests.multinode.runs import Project, assert_same_bits

OUTAGE_SECONDS = 60.0
PORT = 8765
SLOW = "64kbit"
"""So that the network fails while shards are on their way."""


@pytest.fixture(scope="module")
def shards(project: Project) -> Path:
    directory, _ = build_corpus(project.directory / "far", num_images=24, seed=0, size=(480, 400))
    return directory


@pytest.mark.slow
def test_a_minute_without_the_network_costs_no_sample(
    two: tuple[Host, Host], crew: Crew, project: Project, shards: Path
):
    near, far = two
    patient = (*DROPOUT, "engine.timeout_seconds=240", "engine.start_timeout_seconds=240")
    local = crew.start([near], project.recipe, "run.name=near", f"data.train={shards}", *patient, slots=2)
    assert local.codes() == [DONE, DONE], local.said

    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    serve = [sys.executable, "-S", "-m", "http.server", str(PORT), "--directory", str(shards)]
    server = far.popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while near.run(["bash", "-c", f"exec 3<>/dev/tcp/{far.name}/{PORT}"]).returncode != 0:
            time.sleep(POLL_SECONDS)
        with far.limited_to(SLOW):
            sent = far.sent_bytes()
            remote = (f"data.train=http://{far.name}:{PORT}", f"data.cache.directory={project.directory / 'cache'}")
            start = crew.start([near], project.recipe, "run.name=far", *remote, *patient, slots=2)
            _wait_until_sent(far, sent + size // 4)
            far.unplug()
            assert far.sent_bytes() - sent < size, "shards are on their way still"
            time.sleep(OUTAGE_SECONDS)
            assert project.run("far").last_step == 0, "nothing to train on came meanwhile"
            far.plug()
            assert start.codes() == [DONE, DONE], start.said
    finally:
        far.plug()
        far.end(server)
    assert_same_bits(project.run("far"), project.run("near"))


def _wait_until_sent(host: Host, amount: int) -> None:
    deadline = time.monotonic() + END_SECONDS
    while host.sent_bytes() < amount:
        assert time.monotonic() < deadline, "the host is not asked for shards"
        time.sleep(POLL_SECONDS)
