"""Footprint, wanted level and the choice of level."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnerf_tiles.geometry.footprint import footprint, gsd, level_and_weight, wanted_level


def test_gsd_halves_with_each_level() -> None:
    assert gsd(128.0, 64, 0) == 2.0
    np.testing.assert_array_equal(gsd(128.0, 64, np.array([1, 2, 5])), [1.0, 0.5, 0.0625])


def test_footprint_grows_with_distance_and_pyramid_level() -> None:
    assert footprint(100.0, 500.0) == 0.2
    np.testing.assert_allclose(footprint(100.0, np.array([500.0, 1000.0]), np.array([2, 0])), [0.8, 0.1])


def test_wanted_level_is_where_gsd_equals_the_footprint() -> None:
    for level in (0, 3, 11):
        assert wanted_level(2.0, gsd(128.0, 64, level)) == level
    assert wanted_level(2.0, 1.0, lod_bias=0.5) == 1.5
    assert wanted_level(2.0, 0.0) == np.inf


@pytest.mark.parametrize(
    ("wanted", "deepest", "level", "weight"),
    [
        (-3.0, 5, 0, 1.0),
        (0.0, 5, 0, 1.0),
        (0.25, 5, 1, 0.25),
        (1.0, 5, 1, 1.0),
        (1.5, 5, 2, 0.5),
        (1.5, 1, 1, 1.0),
        (9.0, 5, 5, 1.0),
        (np.inf, 5, 5, 1.0),
        (-np.inf, 5, 0, 1.0),
        (4.9, 0, 0, 1.0),
    ],
)
def test_level_and_weight_closed_forms(wanted: float, deepest: int, level: int, weight: float) -> None:
    d, beta = level_and_weight(wanted, deepest)
    assert d == level
    assert beta == pytest.approx(weight)
    assert d.dtype == np.int32


@given(st.floats(-3, 20), st.integers(0, 18))
def test_drawn_detail_is_continuous_in_the_wanted_level(wanted: float, deepest: int) -> None:
    # whole levels below the finest, plus its weight: a continuous function must not jump between neighbours
    def detail(value: float) -> float:
        d, beta = level_and_weight(value, deepest)
        assert 0 <= beta <= 1
        return float(d) - 1 + float(beta)

    assert abs(detail(wanted + 1e-6) - detail(wanted)) < 2e-6
    assert detail(wanted) == pytest.approx(min(max(wanted, 0.0), deepest))


def test_level_choice_broadcasts() -> None:
    d, beta = level_and_weight(np.array([[0.5], [3.5]]), np.array([0, 2, 4]))
    np.testing.assert_array_equal(d, [[0, 1, 1], [0, 2, 4]])
    np.testing.assert_array_equal(beta, [[1.0, 0.5, 0.5], [1.0, 1.0, 0.5]])
