"""Slurm's short form of host names: `gpu[01-03,07],login` is gpu01 gpu02 gpu03 gpu07 login."""

import re

from shards.errors import ConfigError

_PIECE = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
"""A part of the list between commas that stand outside of brackets."""
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
LONGEST = 100_000
"""Hosts; a longer list is a typing mistake that would fill the memory."""


def expand_nodelist(text: str) -> list[str]:
    """The host names of a list in Slurm's short form, in its order; brackets may stand anywhere, and several times.

    Raises:
        ConfigError: the text is no such list.
    """
    pieces = _PIECE.findall(text)
    if not text or ",".join(pieces) != text:
        raise _malformed(text)
    names: list[str] = []
    for piece in pieces:
        names += _expand(piece, text)
        if len(names) > LONGEST:
            raise _malformed(text)
    return names


def _expand(piece: str, whole: str) -> list[str]:
    opening = piece.find("[")
    if opening < 0:
        return [piece]
    closing = piece.index("]", opening)
    numbers: list[str] = []
    for part in piece[opening + 1 : closing].split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise _malformed(whole)
        first, last = found[1], found[2] or found[1]
        if int(last) < int(first) or int(last) - int(first) >= LONGEST:
            raise _malformed(whole)
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    rest = _expand(piece[closing + 1 :], whole)
    if len(numbers) * len(rest) > LONGEST:
        raise _malformed(whole)
    return [f"{piece[:opening]}{number}{end}" for number in numbers for end in rest]


def _malformed(text: str) -> ConfigError:
    return ConfigError(
        f"environment: node list {text!r} is none of Slurm's, such as gpu[01-03,07]; set MASTER_ADDR to the host of "
        "rank 0"
    )
