"""Small JSON files that protect themselves: they hold the digest of their own text."""

import hashlib
import re

import msgspec

NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'"digest": "([0-9a-f]{64})"')


def seal(value: msgspec.Struct) -> bytes:
    """A struct with a field `digest` as JSON text with keys in a fixed order, sealed with the sha256 of that text."""
    blank = msgspec.structs.replace(value, digest=NO_DIGEST)
    data = msgspec.json.format(msgspec.json.encode(blank, order="deterministic"), indent=1)
    return data.replace(NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def told_digest(data: bytes) -> str | None:
    """The digest that a text, or its beginning, says it has."""
    found = _DIGEST.search(data)
    return None if found is None else found.group(1).decode()


def is_intact(data: bytes) -> bool:
    """Whether a text is, to the byte, what `seal` gave."""
    found = _DIGEST.search(data)
    if found is None:
        return False
    blank = data[: found.start(1)] + NO_DIGEST.encode() + data[found.end(1) :]
    return hashlib.sha256(blank).hexdigest().encode() == found.group(1)
