"""Changes of training pictures, as pure functions of the position in a run: one picture for any number of workers and
ranks, before a resume and after it.

RandAugment (Cubuk et al., arXiv 1909.13719) by timm's configuration strings; and `turns` and `shifts`, which no string
of timm's says.
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from shards.format.records import Item
from shards.plan import hash64

FILL = (123, 117, 104)
"""What comes into a picture from outside: CLIP's mean colour, which the towers subtract (0 behind it)."""

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""The operations of `tgeometric`, which is ours: timm has no set that leaves colours as they are."""

_SECTIONS = (r"m\d+", r"n[1-9]\d*", r"p(0(\.\d+)?|1(\.0+)?|\.\d+)", r"mstd\d+(\.\d+)?", r"mmax\d+", r"inc[01]")
_SETS = ("weights", "3a", "3aw", "geometric")
_SECTION = re.compile("|".join((*_SECTIONS, f"t({'|'.join(_SETS)})")))
_SIDE = re.compile(r"\b(left|right)(most|hand(ed)?|wards?|side)?\b", re.IGNORECASE)
_HEIGHT = re.compile(
    r"\b(up(per(most)?|wards?|side)?|down(wards?|side)?|top(most)?|bottom|above|below|under(neath)?|beneath|over|on|"
    r"high(er|est)?|low(er(most)?|est)?|vertical(ly)?|horizontal(ly)?|stand(s|ing)?|lying|hang(s|ing)?)\b",
    re.IGNORECASE,
)
TURNS, SHIFTS = "turns", "shifts"
SHIFTED_PART = 16
"""Of a side, by which a picture is moved at most: the usual 4 pixels of 64."""

_WAYS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
"""The symmetries of a square; the first four are those of a rectangle."""


def augment_fault(config: str) -> str | None:
    """What is wrong with a configuration string; timm itself reads over most of its own."""
    if _own(config):
        return None
    first, *sections = config.split("-")
    wrong = next((section for section in sections if not _SECTION.fullmatch(section)), None)
    names = [re.match("[a-z]+", section)[0] if section[:1] != "t" else "t" for section in sections if wrong is None]
    if first == "rand" and wrong is None and len(set(names)) == len(names):
        return None
    found = f"section {wrong!r}" if first == "rand" and wrong is not None else repr(config)
    return (
        f"{found} is none of timm's; expected rand and sections, each once, such as rand-m9-mstd0.5: mN magnitude, nN "
        f"operations, pX probability of each, mstdX and mmaxN of the magnitude, inc1, t with {' or '.join(_SETS)}; or "
        f"{TURNS}, {SHIFTS} or {TURNS}+{SHIFTS}"
    )


def tells_sides(items: Sequence[Item]) -> bool:
    """Whether a text says left or right, also as in leftmost or right-hand."""
    return any(_SIDE.search(text) for item in items for text in item.texts)


def tells_heights(items: Sequence[Item]) -> bool:
    """Whether a text says where up and down is, or what lies on what."""
    return any(_HEIGHT.search(text) for item in items for text in item.texts)


class Changes(Protocol):
    """What changes training pictures."""

    def __call__(self, image: Image.Image, *, epoch: int, sample: int) -> Image.Image:
        """An image in mode RGB to one of the same size."""
        ...

    def spares(self, items: Sequence[Item]) -> bool:
        """Whether what is asked about a picture would not be true of the changed one."""
        ...


def changes(config: str, seed: int) -> Changes:
    """What a configuration string without a fault says."""
    own = _own(config)
    return InOrder(tuple(kind(seed) for kind in own)) if own else RandAugment(config, seed)


class Turns:
    """One of the eight ways to turn and mirror a square picture, of the four that keep the size of another one, each as
    likely: no pixel gets another value, and nothing comes in from outside.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, image: Image.Image, *, epoch: int, sample: int) -> Image.Image:
        """See `Changes`."""
        ways = _WAYS if image.width == image.height else _WAYS[:4]
        way = ways[_drawn(self.seed, epoch, sample) % len(ways)]
        return image if way is None else image.transpose(way)

    def spares(self, items: Sequence[Item]) -> bool:
        """See `Changes`."""
        return tells_sides(items) or tells_heights(items)


class Shifts:
    """A picture moved by some pixels, each way as likely: what comes in from outside repeats the pixels of its edge
    (He et al. 2016, section 4.2, with padding that no plain ground shows).

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, image: Image.Image, *, epoch: int, sample: int) -> Image.Image:
        """See `Changes`."""
        across, down = image.width // SHIFTED_PART, image.height // SHIFTED_PART
        row, column = divmod(
            _drawn(self.seed, epoch, sample, "shift") % ((2 * down + 1) * (2 * across + 1)), 2 * across + 1
        )
        wide = np.pad(np.asarray(image), ((down, down), (across, across), (0, 0)), mode="edge")
        return Image.fromarray(wide[row : row + image.height, column : column + image.width])

    def spares(self, items: Sequence[Item]) -> bool:  # noqa: ARG002 - things stand to each other as they did
        """See `Changes`."""
        return False


class InOrder(NamedTuple):
    """Changes one behind the other."""

    changes: tuple[Changes, ...]

    def __call__(self, image: Image.Image, *, epoch: int, sample: int) -> Image.Image:
        """See `Changes`."""
        for change in self.changes:
            image = change(image, epoch=epoch, sample=sample)
        return image

    def spares(self, items: Sequence[Item]) -> bool:
        """See `Changes`."""
        return any(change.spares(items) for change in self.changes)


_OWN: dict[str, type[Turns | Shifts]] = {TURNS: Turns, SHIFTS: Shifts}


def _own(config: str) -> list[type[Turns | Shifts]]:
    """What is not timm's, each once; empty where something is, or nothing at all."""
    names = config.split("+")
    return [_OWN[name] for name in names] if set(names) <= _OWN.keys() and len(set(names)) == len(names) else []


class RandAugment:
    """Changes training pictures.

    Args:
        config: a string of timm's, such as `rand-m9-mstd0.5`; see `augment_fault`.
        seed: of the run.
    """

    def __init__(self, config: str, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, image: Image.Image, *, epoch: int, sample: int) -> Image.Image:
        """See `Changes`."""
        with _generators_at(_drawn(self.seed, epoch, sample)):
            return self._transform(image)

    def spares(self, items: Sequence[Item]) -> bool:
        """See `Changes`."""
        return tells_sides(items)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "seed": self.seed}  # each worker builds its own transform

    @cached_property
    def _transform(self) -> Any:
        from timm.data.auto_augment import rand_augment_transform  # imports torchvision: a second

        config, operations = self.config, None
        if "-tgeometric" in config:
            config, operations = config.replace("-tgeometric", ""), list(GEOMETRIC)
        return rand_augment_transform(config, {"img_mean": FILL}, operations)


def _drawn(seed: int, epoch: int, sample: int, purpose: Literal["augment", "shift"] = "augment") -> int:
    """The number that everything about a picture in an epoch comes from."""
    return int(hash64(seed, epoch, purpose, np.array([sample]))[0])


@contextmanager
def _generators_at(digest: int) -> Iterator[None]:
    """timm draws from the global generators of Python and numpy: lend them a state, and put theirs back."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(digest)
    np.random.seed(digest % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
