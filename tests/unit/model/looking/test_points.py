"""Points lie where the heat is, whatever the heatmap; a mask moves heat and never makes or loses any."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from model.looking.points import Point, choose_points, refine_heatmap, to_pixels, to_unit

Floats = NDArray[np.float64]
GRID = 24
quick = settings(max_examples=60, deadline=None)
cells = st.integers(0, GRID - 1)
seeds = st.integers(0, 2**32 - 1)
grids = st.integers(1, 12).flatmap(
    lambda side: arrays(np.float32, (side, side), elements=st.floats(0, 100, width=32) | st.just(0.0))
)


def blob(row: float, column: float, *, width: float = 1.5, grid: int = GRID) -> Floats:
    rows, columns = np.mgrid[:grid, :grid]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))


def distance(point: Point, cell: tuple[int, int]) -> float:
    return float(np.hypot(point.row - cell[0], point.column - cell[1]))


def places(points: list[Point]) -> set[tuple[int, int]]:
    return {(point.row, point.column) for point in points}


@quick
@given(grids, st.integers(1, 5), st.floats(0.05, 1), st.floats(0, 3), seeds)
def test_points_are_few_distinct_ordered_and_each_on_a_warm_cell(heatmap, num_points, min_share, smoothing, seed):
    options = {"num_points": num_points, "min_share": min_share, "smoothing": smoothing, "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = choose_points(heatmap, **options)
    assert len(places(points)) == len(points) <= num_points
    assert all(heatmap[point.row, point.column] > 0 for point in points)
    weights = [point.weight for point in points]
    assert weights == sorted(weights, reverse=True)
    assert all(min_share <= weight <= 1 for weight in weights)
    assert choose_points(heatmap, **options) == points


@quick
@given(grids, seeds, st.integers(0, 2**32 - 1))
def test_only_the_given_seed_decides(heatmap, seed, other):
    expected = choose_points(heatmap, seed=seed)
    np.random.seed(other)
    before = np.random.get_state()[1].copy()
    assert choose_points(heatmap, seed=seed) == expected
    assert (np.random.get_state()[1] == before).all(), "the global generator is somebody else's"


@quick
@given(cells, cells, st.floats(0.5, 3), st.floats(0, 10), seeds)
def test_one_blob_gives_one_point_on_it_wherever_it_is_and_whatever_lies_under_it(row, column, width, ground, seed):
    (point,) = choose_points(ground + blob(row, column, width=width), seed=seed)
    assert distance(point, (row, column)) <= 1.5  # at the edge smoothing moves it inwards by a cell
    assert point.weight == 1


@quick
@given(st.lists(st.tuples(cells, cells), min_size=2, max_size=3), st.floats(0.5, 2), seeds)
def test_each_of_two_or_three_equal_blobs_far_from_each_other_gets_a_point(targets, width, seed):
    apart = [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(targets) for b in targets[:i]]
    assume(min(apart) >= 10)
    points = choose_points(sum(blob(*target, width=width) for target in targets), seed=seed)
    assert len(points) == len(targets)
    for target in targets:
        assert min(distance(point, target) for point in points) <= 1.5


@quick
@given(st.floats(0.01, 1), seeds)
def test_a_blob_counts_if_its_share_of_the_best_is_large_enough(share, seed):
    assume(abs(share - 0.3) > 0.01)
    points = choose_points(blob(6, 6) + share * blob(17, 17), min_share=0.3, seed=seed)
    assert places(points) == ({(6, 6), (17, 17)} if share > 0.3 else {(6, 6)})


@quick
@given(st.tuples(cells, cells), st.tuples(cells, cells), st.sampled_from([0.6, 0.8, 1.0]), seeds)
def test_a_flipped_heatmap_has_flipped_points(first, second, share, seed):
    assume(np.hypot(first[0] - second[0], first[1] - second[1]) >= 10)
    heatmap = blob(*first) + share * blob(*second)
    expected, last = places(choose_points(heatmap, seed=seed)), GRID - 1
    assert places(choose_points(heatmap[:, ::-1], seed=seed)) == {(row, last - column) for row, column in expected}
    assert places(choose_points(heatmap[::-1], seed=seed)) == {(last - row, column) for row, column in expected}
    assert places(choose_points(heatmap.T, seed=seed)) == {(column, row) for row, column in expected}


@quick
@given(grids, st.floats(1e-20, 1e20), seeds)
def test_the_unit_of_heat_does_not_matter(heatmap, unit, seed):
    heat = heatmap.astype(np.float64)
    assume(not heat.any() or heat.max() > 1e-3)
    found, expected = choose_points(heat * unit, seed=seed), choose_points(heat, seed=seed)
    assert places(found) == places(expected)


@pytest.mark.parametrize(
    "heatmap",
    [
        np.zeros((0, 0)),
        np.zeros((GRID, GRID)),
        np.full((GRID, GRID), 3.0),
        np.full((1, 1), 3.0),
        np.full((GRID, GRID), np.nan),
        np.where(blob(3, 3) > 0.5, np.nan, 1.0),
        np.where(blob(3, 3) > 0.5, np.inf, 1.0),
        1.0 + 1e-6 * blob(3, 3),
    ],
    ids=["no cells", "cold", "level", "one cell", "nan", "some nan", "infinite", "almost level"],
)
def test_a_heatmap_that_says_nothing_has_no_points(heatmap):
    assert choose_points(heatmap, seed=0) == []


def test_a_single_warm_cell_is_the_only_point_and_nothing_fills_up_the_number():
    for row, column in ((0, 0), (0, 2), (3, 3), (2, 1)):
        heatmap = np.zeros((4, 4))
        heatmap[row, column] = 0.25
        assert choose_points(heatmap, num_points=3, seed=0) == [Point(row, column, 1.0)]


def test_a_cold_centre_of_a_warm_ring_is_no_point():
    heatmap = np.zeros((9, 9))
    heatmap[2:7, 2:7] = 1
    heatmap[3:6, 3:6] = 0
    points = choose_points(heatmap, smoothing=2.0, seed=0)
    assert points
    assert all(heatmap[point.row, point.column] for point in points)


@given(st.integers(1, 40), st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_points_in_pixels_fall_into_the_part_of_the_image_that_their_cell_covers(grid, width, height, data):
    row, column = data.draw(st.tuples(st.integers(0, grid - 1), st.integers(0, grid - 1)))
    ((x, y),) = to_pixels([Point(row, column, 1.0)], grid, (width, height))
    assert column * width / grid < x < (column + 1) * width / grid
    assert row * height / grid < y < (row + 1) * height / grid
    ((unit_x, unit_y),) = to_unit([Point(row, column, 1.0)], grid)
    assert (unit_x * width, unit_y * height) == (x, y)


def test_no_points_are_an_array_of_no_coordinates():
    assert to_pixels([], 4, (10, 10)).shape == (0, 2)
    assert to_unit([], 4).shape == (0, 2)


masks = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(0, 1, width=32))
)


@quick
@given(grids, masks, st.floats(0, 1))
def test_refining_keeps_the_sum_and_moves_heat_towards_the_mask(heatmap, mask, blend):
    refined = refine_heatmap(heatmap, mask, blend=blend)
    assert refined.shape == heatmap.shape
    assert refined.dtype == heatmap.dtype
    assert (refined >= 0).all()
    assert refined.sum(dtype=np.float64) == pytest.approx(heatmap.sum(dtype=np.float64), rel=1e-4)
    assert not refined[heatmap == 0].any()


def test_the_mask_is_averaged_over_cells_and_blended_as_the_formula_says():
    heatmap = np.array([[1.0, 2.0], [3.0, 4.0]])
    mask = np.zeros((4, 6))
    mask[:2, :3] = 1  # all of cell (0, 0)
    mask[2, 3:] = 1  # half of cell (1, 1)
    inside = np.array([[1.0, 0.0], [0.0, 0.5]])
    for blend in (0.0, 0.25, 1.0):
        expected = (1 - blend) * heatmap + blend * heatmap * inside
        found = refine_heatmap(heatmap, mask, blend=blend)
        np.testing.assert_allclose(found, expected * heatmap.sum() / expected.sum(), rtol=1e-12)


@given(st.integers(1, 7), masks)
def test_averaging_over_cells_keeps_the_mean_of_the_mask_for_any_sizes(grid, mask):
    level = np.ones((grid, grid))
    assume(mask.mean() > 1e-3)
    refined = refine_heatmap(level, mask, blend=1.0)
    pixels = np.kron(mask.astype(np.float64), np.ones((grid, grid)))  # every cell is now a whole number of pixels
    areas = pixels.reshape(grid, mask.shape[0], grid, mask.shape[1]).mean(axis=(1, 3))
    np.testing.assert_allclose(refined, areas / areas.mean(), rtol=1e-5)


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mask", ["none", "empty", "elsewhere", "nan"])
def test_a_mask_that_says_nothing_leaves_the_heatmap_as_it_is(mask: str, blend: float):
    heatmap = np.zeros((4, 4))
    heatmap[1:, 1:] = np.arange(9).reshape(3, 3)
    elsewhere = np.zeros((8, 8))
    elsewhere[:2] = 1
    given_mask = {"none": None, "empty": np.zeros((8, 8)), "elsewhere": elsewhere, "nan": np.full((8, 8), np.nan)}[mask]
    assert np.array_equal(refine_heatmap(heatmap, given_mask, blend=blend), heatmap)
