"""Reductions are exact box means."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnerf_tiles.data.pyramid import mask_pyramid, num_pyramid_levels, pyramid, reduce_box, reduce_mask


def box_mean(image: np.ndarray[Any, Any], factor: int) -> np.ndarray[Any, Any]:
    """Mean of every block by looping over blocks, in exact integers for uint8."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    out = np.empty((height, width, image.shape[2]), image.dtype)
    for row in range(height):
        for column in range(width):
            block = image[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            if image.dtype == np.uint8:
                total = block.reshape(-1, image.shape[2]).astype(int).sum(axis=0)
                out[row, column] = [int(2 * t + factor**2) // (2 * factor**2) for t in total]
            else:
                out[row, column] = block.astype(np.float64).mean(axis=(0, 1))
    return out


@given(
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    channels=st.integers(1, 4),
    factor=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_reduction_is_the_rounded_block_mean(height: int, width: int, channels: int, factor: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    if factor > min(height, width):
        with pytest.raises(ValueError, match=f"expected 1 to {min(height, width)} .*, got {factor}"):
            reduce_box(image, factor)
        return
    reduced = reduce_box(image, factor)
    assert reduced.dtype == np.uint8
    np.testing.assert_array_equal(reduced, box_mean(image, factor))


def test_halves_round_up_and_full_scale_stays() -> None:
    assert reduce_box(np.array([[[0], [1]], [[0], [1]]], np.uint8), 2)[0, 0, 0] == 1
    white = np.full((600, 520, 3), 255, np.uint8)
    for factor in (2, 7, 257, 258, 520):  # 258 is where uint16 no longer holds a column
        assert (reduce_box(white, factor) == 255).all()


def test_float_reduction_keeps_the_mean(rng: np.random.Generator) -> None:
    image = (rng.uniform(0, 1, (12, 20, 3)) + 1000).astype(np.float32)
    reduced = reduce_box(image, 4)
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(reduced, box_mean(image, 4), rtol=1e-7)


@pytest.mark.parametrize("size", [(64, 64), (101, 77), (7, 130)])
def test_each_pyramid_level_is_the_box_mean_of_level_zero(size: tuple[int, int], rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    num_levels = min(size).bit_length()
    levels = pyramid(image, num_levels)
    assert len(levels) == num_levels
    assert levels[0] is image
    for p, level in enumerate(levels):
        np.testing.assert_array_equal(level, reduce_box(image, 2**p))
        assert level.shape == (size[0] // 2**p, size[1] // 2**p, 3)
    with pytest.raises(ValueError, match="reduction factor"):
        pyramid(image, num_levels + 1)


def test_rounding_does_not_add_up() -> None:
    """Rounding level by level would give 1 here, the mean is 0.375."""
    image = np.zeros((4, 4, 1), np.uint8)
    image[0, [0, 1, 2, 3]] = image[2, [0, 3]] = 1
    assert pyramid(image, 3)[2][0, 0, 0] == 0


@pytest.mark.parametrize(
    ("width", "num_levels"), [(1, 1), (63, 1), (64, 1), (127, 1), (128, 2), (255, 2), (1280, 5), (4000, 6)]
)
def test_the_coarsest_level_is_at_least_64_wide(width: int, num_levels: int) -> None:
    assert num_pyramid_levels(width, width) == num_levels
    assert width >> (num_levels - 1) >= 64 or num_levels == 1
    assert width >> num_levels < 64


@pytest.mark.parametrize(("height", "num_levels"), [(1, 1), (2, 2), (15, 4), (16, 5), (24, 5), (32, 6), (2048, 6)])
def test_no_level_of_a_flat_photo_is_empty(height: int, num_levels: int) -> None:
    assert num_pyramid_levels(2048, height) == num_levels
    assert pyramid(np.zeros((height, 2048, 1), np.uint8), num_levels)[-1].size


def test_a_reduced_mask_pixel_needs_all_of_its_pixels() -> None:
    mask = np.ones((6, 9), np.bool_)
    mask[3, 4] = False
    mask[5, 8] = False
    np.testing.assert_array_equal(reduce_mask(mask, 3), [[True, True, True], [True, False, False]])
    np.testing.assert_array_equal(reduce_mask(mask, 4), [[True, False]])
    assert reduce_mask(mask, 1) is not mask


def test_mask_pyramid_is_the_reduction_of_level_zero(rng: np.random.Generator) -> None:
    mask = rng.uniform(size=(37, 66)) < 0.97
    levels = mask_pyramid(mask, 4)
    for p, level in enumerate(levels):
        np.testing.assert_array_equal(level, reduce_mask(mask, 2**p))
    assert not levels[1].all()


@pytest.mark.parametrize(
    "call",
    [
        lambda i: pyramid(i, 0),
        lambda i: reduce_box(i, 0),
        lambda _: num_pyramid_levels(0, 8),
        lambda _: num_pyramid_levels(8, 0),
    ],
)
def test_nonsense_is_refused(call: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        call(np.zeros((4, 4, 3), np.uint8))
