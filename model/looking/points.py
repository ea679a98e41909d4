"""A heatmap becomes a few points, and a mask found at these points sharpens the heatmap: pure functions of arrays.

Shapes: g the side of the heatmap's grid, P points, (h, w) a mask of any size. Cell (row, column) of a grid covers the
same part of the image whatever the image's proportions, since BLIP stretches every image to a square.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter, maximum_filter

Floats = NDArray[np.float64]

USUAL_GRID = 24
"""Cells on a side of BLIP's grid at 384 pixels, in which smoothing is measured."""

BACKGROUND_QUANTILE = 0.25
"""What most of the image has is no heat of its own; a thing may cover three quarters of the image and stand out."""
FLAT = 0.01
"""A heatmap whose heat rises less than this part of its maximum above the background points nowhere."""
ROUNDING = 1e-9
"""Cells on a level may differ by this much after smoothing."""
HEAT_STEPS = 8
"""How often the hottest cell counts in the clustering; a cell of half its heat counts half as often."""
ATTEMPTS = 4
"""Clusterings from different starts, of which the tightest is taken: one start can put two centres in one blob."""


class Point(NamedTuple):
    """A cell of the grid that stands for a hot region around it."""

    row: int
    column: int
    weight: float
    """Heat above the background, as a part of the hottest point's: in (0, 1]."""


def choose_points(
    heatmap: ArrayLike, *, num_points: int = 3, min_share: float = 0.3, smoothing: float = 1.0, seed: int
) -> list[Point]:
    """The centres of the hot regions of a heatmap, at most `num_points`, hottest first.

    The background, the lower quartile of the heatmap, is taken off, and the rest is smoothed. Cells with at least
    `min_share` of the highest heat that is left, and with heat of their own, are clustered by k-means on their
    coordinates, each counting by its heat. The highest cell of a cluster is a point, unless a neighbouring cell is
    hotter still: then the cluster is the slope of another one's region. So there are as many points as regions, not
    `num_points` at any price; only a region that is level on top may get several.

    Args:
        heatmap: (g, g), not negative.
        num_points: the most points to give.
        min_share: in (0, 1]; regions whose peak is lower than this part of the highest are left out.
        smoothing: standard deviation in cells of a 24 x 24 grid, BLIP's at 384 pixels; on another grid it is as wide
            in the image. 0 leaves the heatmap as it is.
        seed: of the clustering; the same seed gives the same points.

    Returns:
        None at all for a heatmap that is empty, level, or not finite everywhere.
    """
    heat = np.asarray(heatmap, dtype=np.float64)
    rise = _rise_above_background(heat, smoothing * len(heat) / USUAL_GRID)
    if rise is None:
        return []
    candidates = np.argwhere(rise >= min_share)
    share = rise[tuple(candidates.T)]
    peak = (rise >= maximum_filter(rise, size=3, mode="nearest") - ROUNDING)[tuple(candidates.T)]
    points = []
    for members in _clusters(candidates, share, num_points, seed):
        highest = members[np.argmax(share[members])]
        if peak[highest]:
            row, column = candidates[highest].tolist()
            points.append(Point(row, column, float(share[highest])))
    return sorted(points, key=lambda point: (-point.weight, point.row, point.column))


def _rise_above_background(heat: Floats, smoothing: float) -> Floats | None:
    """(g, g) smoothed heat above the background, 0 at cold cells, its maximum 1; None where nothing rises."""
    if not heat.size or not np.isfinite(heat).all() or heat.max() <= 0:
        return None
    relative = heat / heat.max()
    above = np.maximum(relative - np.quantile(relative, BACKGROUND_QUANTILE), 0.0)
    if above.max() <= FLAT:
        return None
    # Cold beyond the edge: a mirrored edge would make corners hotter, and a point there misses what is round.
    rise = gaussian_filter(above, smoothing, mode="constant") * (heat > 0)
    return rise / rise.max()


def _clusters(cells: NDArray[np.int64], share: Floats, num_clusters: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The numbers of the cells in each cluster of the tightest clustering; an empty cluster is left out."""
    counts = np.ceil(share * HEAT_STEPS).astype(np.int64)
    weighted = np.repeat(cells, counts, axis=0).astype(np.float64)
    starts = np.random.default_rng(seed)
    found: list[tuple[float, NDArray[np.int64]]] = []
    for _ in range(ATTEMPTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "One of the clusters is empty"
            centers, _ = kmeans2(weighted, min(num_clusters, len(cells)), minit="++", seed=starts)
        distances = ((cells[:, None] - centers) ** 2).sum(axis=-1)
        found.append((float(counts @ distances.min(axis=1)), distances.argmin(axis=1)))
    labels = min(found, key=lambda attempt: attempt[0])[1]
    for label in np.unique(labels):
        yield np.flatnonzero(labels == label)


def to_unit(points: Sequence[Point], grid: int) -> Floats:
    """The centres of the points' cells as (P, 2) fractions (x, y) of the image's width and height, in (0, 1)."""
    cells = np.array([(point.column, point.row) for point in points], dtype=np.float64).reshape(-1, 2)
    return (cells + 0.5) / grid


def to_pixels(points: Sequence[Point], grid: int, image_size: tuple[int, int]) -> Floats:
    """The centres of the points' cells as (P, 2) (x, y) in pixels of the original image.

    Args:
        grid: side of the heatmap that the points were chosen on.
        image_size: (width, height) of the original image. Coordinates are continuous: pixel 0 covers 0 to 1.
    """
    return to_unit(points, grid) * np.array(image_size, dtype=np.float64)


def refine_heatmap(heatmap: ArrayLike, mask_probability: ArrayLike | None, *, blend: float) -> NDArray[np.floating]:
    """The heatmap with the heat inside of a mask emphasised: (1 - blend) * heat + blend * heat * mask, same sum.

    Args:
        heatmap: (g, g), not negative.
        mask_probability: (h, w) in [0, 1], averaged over each cell's area; None where no mask was found.
        blend: in [0, 1]; 1 keeps only the heat inside of the mask.

    Returns:
        (g, g). The heatmap as it was without a mask, or where the mask leaves no heat.
    """
    assert 0.0 <= blend <= 1.0, blend
    heat = np.asarray(heatmap)
    if mask_probability is None:
        return heat
    inside = _average_over_cells(np.asarray(mask_probability, dtype=np.float64), heat.shape)
    refined = heat * ((1.0 - blend) + blend * inside)
    total = refined.sum()
    if not np.isfinite(total) or total <= 0 or not (heat * inside).any():
        return heat
    return (refined * (heat.sum() / total)).astype(heat.dtype)


def _average_over_cells(mask: Floats, grid: tuple[int, ...]) -> Floats:
    """(h, w) to `grid`, each cell the mean over its area; a pixel that two cells share counts in each by its part."""
    down, across = (_shares(cells, pixels) for cells, pixels in zip(grid, mask.shape, strict=True))
    return down @ mask @ across.T


def _shares(cells: int, pixels: int) -> Floats:
    """(cells, pixels): which part of each cell each pixel covers, along one side."""
    cell_edges = np.arange(cells + 1)[:, None] / cells * pixels
    pixel_edges = np.arange(pixels + 1)[None, :]
    ends = np.minimum(cell_edges[1:], pixel_edges[:, 1:])
    begins = np.maximum(cell_edges[:-1], pixel_edges[:, :-1])
    return np.maximum(ends - begins, 0.0) * (cells / pixels)
