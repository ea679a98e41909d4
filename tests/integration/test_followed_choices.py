"""Somebody with a recipe follows the pages about what can be chosen in it: backbones, optimizers, ZeRO, trackers, far
shards, and what a profile and a plan of the memory say.

The recipes are the shipped ones with other sizes in them (tests/shipped.py); every command is the page's own, from its
text.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import follow, reasons_without_command, run_or_named, states
from tests.shipped import write_desk

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGES = ("performance", "scaling", "references", "optim", "cockpit", "remote")
NOT_HERE = {
    "bench step": "minutes",
    "bench memory": "minutes",
    "bench overhead": "minutes",
    "bench scaling --hosts": "minutes, and hosts that only root can make",
    "https://data.example.org": "a host that is not there; tests/unit/shards/remote reads from a server of HTTP",
}
"""What stands in commands that do not run here -> why."""
if not importlib.util.find_spec("mlflow"):
    NOT_HERE["logging.tracker=mlflow"] = "the extra [mlflow]"
HAS_STORE = all(importlib.util.find_spec(name) for name in ("s3fs", "moto"))
if not HAS_STORE:
    NOT_HERE["s3://"] = "the extra [s3] and a server of it"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where shards, recipes and checkpoints lie under the names of the pages'."""
    directory = write_desk(tmp_path_factory.mktemp("choices"))
    (directory / "data" / "easyvqa").symlink_to("gqa")
    return directory


@contextlib.contextmanager
def bucket(desk: Path) -> Iterator[dict[str, str]]:
    """The shards of GQA in the bucket of the page; gives the environment that leads there."""
    if not HAS_STORE:
        yield {}
        return
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_DEFAULT_REGION": "us-east-1"}
        names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
        url = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=url, **dict(zip(names, keys.values(), strict=True)))
        client.create_bucket(Bucket="bucket")
        for path in (desk / "data" / "gqa").rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "bucket", f"gqa/{path.relative_to(desk / 'data' / 'gqa')}")
        yield keys | {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}
    finally:
        running.stop()


@pytest.fixture(scope="module")
def followed(desk: Path) -> dict[str, dict[str, str]]:
    """Page -> command -> what it said."""
    said = {}
    with bucket(desk) as environment:
        for page in PAGES:
            said[page] = follow(page, desk, NOT_HERE, **environment)
            if page == "performance":
                (desk / "runs" / "RECIPE").rename(desk / "runs" / "profiled")  # the next page trains it too
    return said


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_or_says_why_it_does_not(page: str, followed: dict[str, dict[str, str]]):
    if page != "remote" or HAS_STORE:
        run_or_named(page, followed[page], NOT_HERE)


def test_no_reason_is_left_of_a_command_that_is_gone():
    assert not reasons_without_command(PAGES, NOT_HERE)


@pytest.mark.usefixtures("followed")
def test_every_run_of_the_pages_has_ended_by_itself(desk: Path):
    ended = states(desk)
    assert set(ended) >= {"RECIPE", "adopt", "sgd", "lamb", "by_layer", "convnext", "siglip", "gqa_blip_dinov2"}
    assert set(ended.values()) == {"done"}


@pytest.mark.usefixtures("followed")
def test_a_profile_is_where_the_page_says(desk: Path):
    assert list(desk.glob("runs/profiled/profile/steps*.json"))
