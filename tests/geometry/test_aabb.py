"""Boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnerf_tiles.geometry.aabb import Aabb

BOX = Aabb((-1.0, 2.0, 0.0), (3.0, 4.0, 0.5))


def test_centre_size_and_corners() -> None:
    np.testing.assert_array_equal(BOX.centre, [1.0, 3.0, 0.25])
    np.testing.assert_array_equal(BOX.size, [4.0, 2.0, 0.5])
    corners = BOX.corners
    np.testing.assert_array_equal(corners[0], BOX.lo)
    np.testing.assert_array_equal(corners[1], [3.0, 2.0, 0.0])
    np.testing.assert_array_equal(corners[4], [-1.0, 2.0, 0.5])
    np.testing.assert_array_equal(corners[7], BOX.hi)


def test_contains_is_half_open() -> None:
    points = np.array([BOX.lo, BOX.hi, BOX.centre, [3.0, 3.0, 0.2], [np.nan, 3.0, 0.2]])
    assert BOX.contains(points).tolist() == [True, False, True, False, False]


@given(st.integers(0, 2**32))
def test_ray_interval_agrees_with_dense_sampling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    origins = rng.uniform(-3, 5, (20, 3))
    directions = rng.normal(size=(20, 3))
    directions[:3, rng.integers(0, 3)] = 0.0
    near, far, hit = BOX.intersect_rays(origins, directions)
    t = np.linspace(0, 30, 3001)
    inside = BOX.contains((origins[:, None] + directions[:, None] * t[:, None]).reshape(-1, 3)).reshape(20, -1)
    margin = 1e-9
    expected = (t >= near[:, None] + margin) & (t < far[:, None] - margin) & hit[:, None]
    boundary = np.abs(t - near[:, None]) < margin
    boundary |= np.abs(t - far[:, None]) < margin
    assert (inside == expected)[~boundary].all()


def test_rays_that_are_parallel_start_inside_or_point_away() -> None:
    origins = np.array([[0.0, 3.0, 0.25], [0.0, 3.0, 0.25], [0.0, 3.0, 1.0], [-2.0, 2.0, 0.25], [5.0, 3.0, 0.25]])
    directions = np.array([[1.0, 0, 0], [0, 0, -0.5], [1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    near, far, hit = BOX.intersect_rays(origins, directions)
    # a ray in a face counts; one beside the slab or past the box does not
    assert hit.tolist() == [True, True, False, True, False]
    np.testing.assert_array_equal(near, [0.0, 0.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(far, [3.0, 0.5, 0.0, 5.0, 0.0])


def test_impossible_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="lo <= hi"):
        Aabb((0.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="finite"):
        Aabb((0.0, 0.0, 0.0), (1.0, np.inf, 1.0))
