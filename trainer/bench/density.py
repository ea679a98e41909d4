"""How many questions a visit has: a set number, or as many as the visits of GQA have that the loader would make.

GQA's files say how many questions and images a split has, so the mean is known (big_vision's gqa.py counts them); how
the questions lie on the images is not published. Here they follow a gamma distribution whose deviation is half its
mean, so that some images are hardly asked about and others twice as often as most.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from shards.plan import Visits

QUESTIONS_PER_VISIT = 16
"""K"""

_IMAGES = 10_000
"""Images of the modelled split."""
_SHAPE = 4.0
"""Of the gamma distribution: mean / deviation, squared."""


class Split(NamedTuple):
    """What is known of a split of GQA."""

    questions: int
    images: int

    @property
    def mean(self) -> float:
        """Questions of an image."""
        return self.questions / self.images


DENSITIES: Mapping[str, Split] = {
    "gqa_balanced": Split(943_000, 72_140),
    "gqa_all": Split(14_305_356, 74_256),
}
"""train_balanced and train_all."""


def questions_of_images(mean: float) -> np.ndarray:
    """(images,) int64 counts, at least 1: quantiles of the distribution, so that nothing is drawn."""
    places = [(number + 0.5) / _IMAGES for number in range(_IMAGES)]
    # Wilson and Hilferty (1931): the cube root of a gamma variable is nearly normal.
    spread = 1 / (9 * _SHAPE)
    roots = [1 - spread + math.sqrt(spread) * NormalDist().inv_cdf(place) for place in places]
    return np.maximum(1, np.rint(mean * np.array(roots) ** 3)).astype(np.int64)


def visit_sizes(name: str) -> np.ndarray:
    """The sizes of all visits of a split, ascending: cut from its images as the loader cuts them."""
    return np.sort(Visits(questions_of_images(DENSITIES[name].mean), QUESTIONS_PER_VISIT).sizes)


def questions_of_visits(name: str | None, visits: int) -> tuple[int, ...]:
    """Questions of each visit of a step: K, or for a density those at evenly spread places of its sizes."""
    if name is None:
        return (QUESTIONS_PER_VISIT,) * visits
    sizes = visit_sizes(name)
    return tuple(int(sizes[int((place + 0.5) / visits * len(sizes))]) for place in range(visits))
