"""Bytes behind a URL, by fsspec; every library's error becomes one of two kinds: it may pass, or it will not."""

import asyncio
import os
import ssl
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

from shards.errors import DataError
from shards.remote.address import check_protocol, joined, protocol_of, url_fault, without_secrets
from shards.remote.retry import Patience, TransientError, persistently

CONNECT_SECONDS = 10
STALLED_SECONDS = 30
"""A server that sends nothing for this long is asked again."""

START_SECONDS = 15
"""How long a start tries to get an index."""

_BEHIND_THE_END = 416
_BUSY = {408, 409, 425, 429}
_REFUSED = {401, 403, 407}
_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
    "GatedRepoError",
    "LocalTokenNotFoundError",
}
"""Names of classes: what a library raises where it finds no credentials, or none that are right."""
_NETWORK_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "httpx", "httpx2", "requests", "urllib3", "gcsfs", "google")
_FINAL = {
    "ParamValidationError",
    "InvalidURL",
    "InvalidUrlClientError",
    "NonHttpUrlClientError",
    "UnknownEndpointError",
}


class MissingError(Exception):
    """There is no such file, directory or bucket."""


class Source:
    """A directory behind a URL; safe to hand to other processes, which connect on first use."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            ConfigError: no protocol that can be read here.
            DataError: the URL holds a secret, or is one of many that are chained.
        """
        fault = url_fault(url)
        if fault is not None:
            raise DataError(fault)
        check_protocol(url)
        self.url = url.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def place(self, name: str) -> str:
        """The URL of a file."""
        return joined(self.url, name)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file, or its bytes from `start` to `stop`, as far as there are any. A server that knows no ranges answers
        with the whole file.

        Raises:
            MissingError: there is no such file.
            TransientError: the request failed, and another one may not.
            DataError: it failed, and so will others: access refused, a certificate that is not trusted, ...
        """
        try:
            filesystem, root = self._opened
            return filesystem.cat_file(f"{root}/{name}", start=start, end=stop)
        except Exception as error:
            if start is not None and _status(error) == _BEHIND_THE_END:
                return b""
            raise self._understood(error, name) from error

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        filesystem, root = url_to_fs(self.url, **_options(protocol_of(self.url)))
        return filesystem, root.rstrip("/")

    def _understood(self, error: Exception, name: str) -> Exception:
        place, text = self.place(name), described(error)
        status = _status(error)
        names = {kind.__name__ for one in _with_causes(error) for kind in type(one).__mro__}
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if not names & _CREDENTIALS and (is_missing or status in (404, 410)):
            return MissingError(text)
        if isinstance(error, PermissionError) or status in _REFUSED or names & _CREDENTIALS:
            return DataError(
                f"{place}: access refused on {here()} ({text}); set credentials that may read it, or a public place: "
                "docs/remote.md says how for each provider"
            )
        if isinstance(error, ssl.SSLCertVerificationError) or "ClientConnectorCertificateError" in names:
            return DataError(
                f"{place}: the server's certificate is not trusted on {here()} ({text}); have it signed by an "
                "authority that this machine trusts, or name yours in SSL_CERT_FILE (s3: AWS_CA_BUNDLE)"
            )
        if _may_pass(error, status, names):
            return TransientError(text)
        return DataError(f"{place}: cannot be read from {here()} ({text}); see whether the URL is right")


def here() -> str:
    """The host, and the rank if this process belongs to one, for messages."""
    rank = os.environ.get("RANK")
    return f"host {os.uname().nodename}" + (f", rank {rank}" if rank is not None else "")


def described(error: BaseException) -> str:
    """An error in one line, without secrets."""
    text = " ".join(without_secrets(str(error)).split()) or "no further word"
    named = isinstance(error, OSError) and error.errno is not None and error.strerror
    return text if named else f"{type(error).__name__}: {text}"


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it: huggingface_hub calls a data set that it may not read a file that is missing."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of any of the libraries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, name in ((error, "status"), (response, "status_code"), (error, "code")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def _may_pass(error: Exception, status: int | None, names: set[str]) -> bool:
    if status is not None and status >= 400:
        return status >= 500 or status in _BUSY
    if names & _FINAL:
        return False
    if isinstance(error, OSError | EOFError | TimeoutError | asyncio.TimeoutError | ssl.SSLError):
        return True
    return any(kind.__module__.partition(".")[0] in _NETWORK_LIBRARIES for kind in type(error).__mro__)


def _options(protocol: str) -> dict[str, Any]:
    """What a filesystem is opened with: a server that falls silent must not hold a run up for ever."""
    if protocol in ("http", "https"):
        import aiohttp

        waits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALLED_SECONDS)
        return {"client_kwargs": {"timeout": waits, "trust_env": True}}  # proxies, and ~/.netrc for passwords
    if protocol in ("s3", "s3a"):
        waits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": STALLED_SECONDS, "retries": {"max_attempts": 1}}
        return {"config_kwargs": waits}
    return {}


def read_remote_index(url: str, name: str) -> bytes:
    """The text of an index behind a URL, read once per process: all that a start does goes by one text of it.

    Raises:
        MissingError: there is none.
        DataError: it cannot be read within 15 s: a start that waits longer looks like one that works.
    """
    return _read_once(url.rstrip("/"), name)


@lru_cache(maxsize=16)
def _read_once(url: str, name: str) -> bytes:
    source = Source(url)
    try:
        return persistently(lambda: source.read(name), Patience(START_SECONDS))
    except TransientError as error:
        raise DataError(
            f"{source.place(name)}: cannot be reached from {here()} ({error}); see to the URL, the network or the "
            "server, and run the same command again"
        ) from None
