"""Growing the octree from points."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnerf_tiles.arrays import Float64
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree, grow_from_points


def slow_grow(points: Float64, wanted: Float64, max_level: int, min_points: int, margin: float) -> list[int]:
    keys = [NodeId(0, 0, 0, 0).key]
    for level in range(1, max_level + 1):
        enough = points[wanted >= level - 0.5] * 2**level
        for cell in itertools.product(range(2**level), repeat=3):
            lo = np.array(cell) - margin
            held = ((enough >= lo) & (enough < np.array(cell) + 1 + margin)).all(axis=1)
            if held.sum() >= min_points:
                keys.append(NodeId(level, *cell).key)
    return sorted(keys)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_growth_agrees_with_counting_cube_by_cube(seed: int, min_points: int, dilation: bool) -> None:
    rng = np.random.default_rng(seed)
    points, wanted = rng.random((40, 3)), rng.uniform(-1, 4, 40)
    octree = grow_from_points(points, wanted, 3, min_points, dilation, margin_cells=2.0, cells_per_edge=16)
    expected = slow_grow(points, wanted, 3, min_points, 2 / 16 if dilation else 0.0)
    assert octree.keys.tolist() == expected
    # and the result is an octree: nothing to add
    assert Octree.from_keys(octree.keys).keys.tolist() == expected


def test_a_cluster_grows_to_its_wanted_level_only() -> None:
    points = np.full((10, 3), 0.3)
    for wanted, depth in ((-2.0, 0), (0.4, 0), (0.5, 1), (3.49, 3), (3.5, 4), (99.0, 6)):
        octree = grow_from_points(points, np.full(10, wanted), 6, 8, dilation=False)
        assert octree.depth == depth
        assert octree.num_nodes == depth + 1


def test_fewer_than_min_points_do_not_split() -> None:
    points = np.full((7, 3), 0.3)
    assert grow_from_points(points, np.full(7, 5.0), 6, 8).num_nodes == 1
    assert grow_from_points(points, np.full(7, 5.0), 6, 7).depth == 5


def test_points_seen_coarsely_do_not_count_towards_a_finer_level() -> None:
    points = np.full((8, 3), 0.3)
    wanted = np.array([4.0] * 4 + [2.0] * 4)
    assert grow_from_points(points, wanted, 6, 5).depth == 2


def test_dilation_reaches_across_faces_edges_and_corners_within_the_margin() -> None:
    margin = 2 / 128 / 2  # world width of the margin at level 1
    near, far = 0.5 - 0.9 * margin, 0.5 - 1.1 * margin
    wanted = np.full(5, 1.0)
    corner = grow_from_points(np.full((5, 3), near), wanted, 1, 5)
    assert corner.num_nodes == 9
    face = grow_from_points(np.tile([near, 0.2, 0.2], (5, 1)), wanted, 1, 5)
    assert face.keys.tolist() == sorted(NodeId(*n).key for n in [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0)])
    assert grow_from_points(np.full((5, 3), far), wanted, 1, 5).num_nodes == 2
    assert grow_from_points(np.full((5, 3), near), wanted, 1, 5, dilation=False).num_nodes == 2
    # the root cube's own faces have nothing beyond them
    assert grow_from_points(np.full((5, 3), 0.001), wanted, 1, 5).num_nodes == 2


def test_points_outside_the_cube_and_undefined_levels_are_ignored() -> None:
    points = np.array([[0.3, 0.3, 0.3], [1.0, 0.3, 0.3], [-1e-9, 0.3, 0.3], [np.nan, 0.3, 0.3]])
    octree = grow_from_points(points, np.full(4, 3.0), 3, 1, dilation=False)
    assert octree.num_nodes == 4
    assert grow_from_points(points, np.full(4, np.nan), 3, 1).num_nodes == 1
    assert grow_from_points(np.empty((0, 3)), np.empty(0), 3, 1).num_nodes == 1


def test_a_million_points_on_flat_ground_ask_for_a_quadtree() -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.random((1_000_000, 2)), np.full(1_000_000, 1 / 3)])
    octree = grow_from_points(points, np.full(len(points), 6.0), 8, 16)
    assert np.bincount(octree.levels).tolist() == [4**level for level in range(7)]


@pytest.mark.parametrize(
    "arguments",
    [{"max_level": 19}, {"max_level": -1}, {"min_points": 0}, {"margin_cells": 64.0}, {"margin_cells": -1.0}],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, float]) -> None:
    (name,) = arguments
    defaults: dict[str, float] = {"max_level": 3, "min_points": 1}
    with pytest.raises(ValueError, match=name.removesuffix("_cells")):
        grow_from_points(np.empty((0, 3)), np.empty(0), **{**defaults, **arguments})  # type: ignore[arg-type]
