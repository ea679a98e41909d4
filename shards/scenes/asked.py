"""A question with its answer and program before it has an id, and what else its answer settles."""

from dataclasses import dataclass
from typing import NamedTuple

from shards.scenes.world import Thing

Fact = tuple[str, ...]
"""What an answered question tells about its picture; the first word says how the rest reads (see `follows`)."""

YES_NO = ("yes", "no")


class Kind(NamedTuple):
    """GQA's three classifications. `detailed` lacks the C that GQA adds to some templates when the answer is no."""

    structural: str
    semantic: str
    detailed: str


class Step(NamedTuple):
    """One operation of GQA's functional program; `inputs` are the numbers of the steps whose results it takes."""

    operation: str
    argument: str = ""
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An answered question about one picture."""

    kind: Kind
    text: str
    answer: str
    full_answer: str
    program: tuple[Step, ...]
    topic: str
    """What the question is about, for the local group: `circle_color`."""
    facts: frozenset[Fact]
    choices: tuple[str, ...] = YES_NO
    """Every answer of the right kind (GQA's `valid`)."""
    plausible: tuple[str, ...] = ()
    """Those that are true in some picture (GQA's `plausible`); empty means all of `choices`."""
    group: str | None = None
    """GQA's global group: the questions that share one distribution of answers."""
    mentions: tuple[tuple[str, str], ...] = ()
    """(phrase, object id) of what the question and its full answer name."""
    answer_object: str | None = None
    """The object whose name is the answer."""


def yes(holds: bool) -> str:
    """The answer to a question that is so, or is not."""
    return YES_NO[0] if holds else YES_NO[1]


def so(holds: bool) -> str:
    """How a full answer to such a question opens."""
    return yes(holds).capitalize() + ","


def with_article(words: str) -> str:
    """`a circle`, `an orange circle`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def there_is(exists: bool, words: str) -> str:
    """The full answer to whether there is such a thing."""
    return f"{so(exists)} there is {with_article(words) if exists else f'no {words}'}."


def select(name: str, thing: Thing | None) -> Step:
    """The first step of a program: the thing of this name, or none."""
    return Step("select", f"{name} ({thing.object_id if thing else '-'})")


def named(*things: Thing) -> tuple[tuple[str, str], ...]:
    """Mentions of things by their shape."""
    return tuple((thing.shape, thing.object_id) for thing in things)


def present(shape: str) -> Fact:
    """There is such a shape."""
    return ("present", shape)


def absent(shape: str) -> Fact:
    """There is no such shape."""
    return ("absent", shape)


def is_so(shape: str, attribute: str, value: str, holds: bool = True) -> frozenset[Fact]:
    """There is such a shape and it has, or lacks, a value of an attribute."""
    return frozenset({present(shape), ("has" if holds else "lacks", attribute, shape, value)})


def stands(first: str, name: str, second: str, holds: bool = True) -> frozenset[Fact]:
    """The first shape stands NAME the second, or does not; a name and its opposite tell the same fact."""
    facts = {present(first), present(second)}
    if name in ("to the right of", "below"):
        name, first, second = {"to the right of": "to the left of", "below": "above"}[name], second, first
    return frozenset(facts | {("stands" if holds else "stands not", name, first, second)})


def unordered(name: str, first: str, second: str) -> Fact:
    """A fact about two shapes that reads the same both ways."""
    return (name, *sorted((first, second)))


def follows(fact: Fact, known: frozenset[Fact]) -> bool:
    """Whether who knows these facts of a picture knows this one too.

    `has`, `lacks`: attribute, shape, value. `some`, `no`: color. `none`: color, shape. `either`, `not both`: shape,
    shape. `stands`, `stands not`: name, shape, shape. Shapes are unique in a picture, which is what allows most of it.
    """
    if fact in known:
        return True
    match fact:
        case ("lacks", attribute, shape, value):
            return any(f[:3] == ("has", attribute, shape) and f[3] != value for f in known)
        case ("some", color):
            return any(f[:2] == ("has", "color") and f[3] == color for f in known)
        case ("none", color, shape):
            no_such = {absent(shape), ("no", color), ("lacks", "color", shape, color)}
            return not no_such.isdisjoint(known) or follows(("lacks", "color", shape, color), known)
        case ("either", first, second):
            return present(first) in known or present(second) in known
        case ("not both", first, second):
            return absent(first) in known or absent(second) in known
        case ("stands not", name, first, second):
            return ("stands", name, second, first) in known
    return False


def entails(known: Asked, other: Asked) -> bool:
    """Whether the answer of one question settles that of another about the same picture."""
    return all(follows(fact, known.facts) for fact in other.facts)
