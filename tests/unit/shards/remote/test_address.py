"""URLs: what is one, what of it is refused, and that no secret is shown."""

import sys
from pathlib import Path

import pytest

from shards.errors import ConfigError, DataError
from shards.remote import source as remote_source
from shards.remote.address import check_protocol, is_url, joined, without_secrets
from shards.remote.retry import LONGEST_DELAY_SECONDS, Patience, TransientError, persistently
from shards.remote.source import Source, read_remote_index


def test_what_is_a_url_and_how_a_file_of_it_is_called():
    assert [is_url(text) for text in ("s3://b/x", "HTTPS://h", "a/b", "/a", "a:b", Path("s3://b"))] == [
        *(True, True, False, False, False, False)
    ]
    assert joined("s3://b/x/", "index.json") == "s3://b/x/index.json"
    assert joined("a/b/", "index.json") == "a/b/index.json"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://user:s3cret@host/x", "a user or a password"),
        ("https://s3cret@host/x", "a user or a password"),
        ("https://host/x?X-Amz-Signature=s3cret", "no \\?query"),
        ("simplecache::https://host/x?t=s3cret", "chained"),
    ],
)
def test_urls_with_secrets_are_refused_without_repeating_them(url: str, said: str):
    with pytest.raises(DataError, match=said) as caught:
        Source(url)
    assert "s3cret" not in str(caught.value)


def test_errors_of_libraries_are_shown_without_secrets():
    text = "403, url='https://cdn/x.tar?Signature=s3cret&Key=1' via https://me:s3cret@proxy:3128"
    assert without_secrets(text) == "403, url='https://cdn/x.tar?...' via https://...@proxy:3128"


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ConfigError, match=r"s4:// is no protocol that fsspec knows; did you mean s3://\?"):
        check_protocol("s4://bucket/x")


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"^gs://bucket/x: .* pip install 'duoflow\[gcs\]'$"):
        check_protocol("gs://bucket/x")


def test_a_host_that_does_not_resolve_is_one_line(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp: pip install 'duoflow[http]'")
    monkeypatch.setattr(remote_source, "START_SECONDS", 0.3)
    with pytest.raises(DataError, match=r"^http://h\.invalid/x/index\.json: cannot be reached from host "):
        read_remote_index("http://h.invalid/x", "index.json")


def test_delays_grow_to_a_bound_and_end_with_the_patience():
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def fail() -> None:
        raise TransientError("busy")

    with pytest.raises(TransientError):
        persistently(fail, Patience(100.0, clock=lambda: now[0], sleep=sleep))
    assert now[0] == pytest.approx(100.0)
    assert all(delay <= LONGEST_DELAY_SECONDS for delay in slept)
    assert slept[0] <= 0.2
    assert max(slept) > 2.5
