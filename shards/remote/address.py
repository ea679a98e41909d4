"""Where shards are: a directory, or a URL that fsspec can read; and what of a URL may be shown."""

import difflib
import re
from pathlib import Path

from shards.errors import ConfigError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}
"""Protocol -> the extra of this distribution that brings its packages."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(::.*)?://", re.DOTALL)
_SECRET_IN_HOST = re.compile(r"(?<=://)[^/\s'\"@]*@")
_QUERY = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")


def is_url(place: str | Path) -> bool:
    """Whether a place of shards is a URL; everything else is a directory."""
    return isinstance(place, str) and _URL.match(place) is not None


def joined(place: str | Path, name: str) -> str:
    """A file of a place, for a request or a message."""
    return f"{place.rstrip('/')}/{name}" if isinstance(place, str) and is_url(place) else str(Path(place) / name)


def protocol_of(url: str) -> str:
    """What stands in front of `://`, in lower case."""
    found = _URL.match(url)
    assert found is not None, "ask is_url first"
    return found.group(1).lower()


def without_secrets(text: str) -> str:
    """A text in which no URL has a user, a password or a query, which may be a signature."""
    return _QUERY.sub(r"\1?...", _SECRET_IN_HOST.sub("...@", text))


def url_fault(url: str) -> str | None:
    """What is wrong with a URL, as far as its text shows; secrets are not repeated."""
    found = _URL.match(url)
    assert found is not None, "ask is_url first"
    shown = without_secrets(url)
    if found.group(2) is not None:
        return (
            f"{shown}: URLs that are chained with :: are not read; copy the shards to where one protocol reaches them"
        )
    if _SECRET_IN_HOST.search(url):
        return (
            f"{shown}: a URL with a user or a password would be written into config.yaml and logs; leave them out, and "
            "let the provider's own files or variables hold them (docs/remote.md)"
        )
    if "?" in url or "#" in url:
        return (
            f"{shown}: a URL of shards has no ?query: it names a directory, and a signature would be written into "
            "config.yaml and logs; give the right to read by credentials (docs/remote.md)"
        )
    return None


def check_protocol(url: str) -> None:
    """Whether there is a reader of this protocol, and its packages are installed.

    Raises:
        ConfigError: there is none; the message names the nearest protocol, or the command that installs packages.
    """
    from fsspec.registry import available_protocols, get_filesystem_class

    protocol = protocol_of(url)
    known = [name for name in available_protocols() if name not in ("abstract",)]
    if protocol not in known:
        near = difflib.get_close_matches(protocol, [*EXTRAS, *known], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}://?" if near else "such as s3://, gs://, hf://, https:// or file://"
        raise ConfigError(f"{url}: {protocol}:// is no protocol that fsspec knows; {hint}")
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        if protocol in EXTRAS:
            remedy = f"run pip install 'duoflow[{EXTRAS[protocol]}]'"
        else:
            remedy = f"fsspec says: {error}"
        raise ConfigError(f"{url}: the package that reads {protocol}:// is not installed; {remedy}") from None
