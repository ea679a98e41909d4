"""RandAugment (Cubuk et al., arXiv 1909.13719) by timm's configuration strings, as a pure function of the position in
a run: one picture for any number of workers and ranks, before a resume and after it.
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

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


def augment_fault(config: str) -> str | None:
    """What is wrong with a configuration string; timm itself reads over most of it."""
    first, *sections = config.split("-")
    wrong = next((section for section in sections if not _SECTION.fullmatch(section)), None)
    names = [re.match("[a-z]+", section)[0] if section[:1] != "t" else "t" for section in sections if wrong is None]
    if first == "rand" and wrong is None and len(set(names)) == len(names):
        return None
    found = f"section {wrong!r}" if first == "rand" and wrong is not None else repr(config)
    return (
        f"{found} is none of timm's; expected rand and sections, each once, such as rand-m9-mstd0.5: mN magnitude, nN "
        f"operations, pX probability of each, mstdX and mmaxN of the magnitude, inc1, t with {' or '.join(_SETS)}"
    )


def tells_sides(items: Sequence[Item]) -> bool:
    """Whether a text says left or right, also as in leftmost or right-hand."""
    return any(_SIDE.search(text) for item in items for text in item.texts)


class RandAugment:
    """Changes training pictures.

    Args:
        config: a string of timm's, such as `rand-m9-mstd0.5`; see `augment_fault`.
        seed: of the run.
    """

    def __init__(self, config: str, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, image: Image.Image, *, epoch: int, sample: int) -> Image.Image:
        """An image in mode RGB to one of the same size."""
        digest = int(hash64(self.seed, epoch, "augment", np.array([sample]))[0])
        with _generators_at(digest):
            return self._transform(image)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "seed": self.seed}  # each worker builds its own transform

    @cached_property
    def _transform(self) -> Any:
        from timm.data.auto_augment import rand_augment_transform  # imports torchvision: a second

        config, operations = self.config, None
        if "-tgeometric" in config:
            config, operations = config.replace("-tgeometric", ""), list(GEOMETRIC)
        return rand_augment_transform(config, {"img_mean": FILL}, operations)


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
