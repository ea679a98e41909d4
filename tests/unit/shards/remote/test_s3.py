"""A real S3 server on loopback: what is read from it, and what each of its refusals leads to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.config import CacheConfig
from shards.errors import DataError, UserError
from shards.format.index import index_digest, read_index
from shards.plan import Order
from shards.read.micro_batches import Split, TrainingBatches, alone
from tests.corpora import build_corpus
from tests.unit.shards.read.test_loader import SIZE, TEXTS, all_batches, assert_same

pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install 'duoflow[s3]'")
server = pytest.importorskip("moto.server", reason="needs an S3 server: pip install 'moto[server]'")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = build_corpus(tmp_path_factory.mktemp("s3"), num_images=9, questions_per_image=5)
    return directory


@pytest.fixture
def bucket(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the shards in a bucket."""
    import boto3
    import s3fs

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "s3cret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ("AWS_CONFIG_FILE", "/nonexistent"),
    ):
        monkeypatch.setenv(name, value)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for path in shards.iterdir():
            client.upload_file(str(path), "bucket", f"gqa/{port}/{path.name}")
        yield f"s3://bucket/gqa/{port}"  # another URL for each server: an index is read once per process
    finally:
        running.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_shards_of_a_bucket_are_those_of_the_directory(bucket: str, shards: Path, tmp_path: Path):
    order = Order(seed=5, questions_per_visit=4, visits_per_step=4, lanes=2, shuffle_shards=2)
    there = Split(bucket, order, cache=CacheConfig(directory=str(tmp_path)))
    expected = all_batches(TrainingBatches(Split(str(shards), order), TEXTS, SIZE, alone(2)), 0)
    # In this process: workers have the environment of the server that forks them, which may be older than `bucket`.
    assert_same(all_batches(TrainingBatches(there, TEXTS, SIZE, alone(2)), 0), expected)
    assert index_digest(bucket) == index_digest(shards)


def test_a_bucket_or_a_path_that_is_not_there_is_one_line(bucket: str):
    for url in (f"{bucket}/nowhere", bucket.replace("bucket", "no-such-bucket")):
        with pytest.raises(DataError, match=rf"^{url}: no index\.json there .*bucket and path are right$"):
            read_index(url)


def test_no_credentials_are_one_line_without_a_secret(bucket: str, monkeypatch: pytest.MonkeyPatch):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"index\.json: access refused on host .*docs/remote\.md") as caught:
        read_index(bucket)
    assert "s3cret" not in str(caught.value)


def test_credentials_that_are_refused_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch):
    import s3fs

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "cat_file", refused)
    with pytest.raises(UserError, match=r"index\.json: access refused on host .*Access Denied"):
        read_index(bucket)
