"""What the ranks of `duoflow bench scaling` are asked, and what they answer. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Collective = Literal["reduce", "gather"]
"""An all-reduce, or an all-gather."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Steps of one kind, to be timed."""

    stage: int
    accumulation: int
    steps: int
    width: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One collective by itself, of fp32."""

    collective: Collective
    elements: int
    """Of the whole tensor; the ranks divide it."""
    times: int


class Answer(NamedTuple):
    """What the steps of a job took on one rank."""

    seconds: list[float]
    """Of each step."""
    sent_bytes: float
    """A step, by all ranks of this host over its network interfaces but loopback, headers included."""
    parameters: int


def sent_bytes(text: str) -> int:
    """Bytes that a network namespace has sent, without loopback: the text is /proc/net/dev's."""
    lines = [line.partition(":") for line in text.splitlines() if ":" in line]
    return sum(int(counts.split()[8]) for name, _, counts in lines if name.strip() != "lo")
