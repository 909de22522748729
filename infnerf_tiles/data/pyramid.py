"""Box-filter reductions of photos and masks."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infnerf_tiles.arrays import AnyArray, Bool, UInt8

MIN_PYRAMID_WIDTH = 64
_MAX_FACTOR = 4096  # 255 · 4096² still fits uint32

_Pixel = TypeVar("_Pixel", np.uint8, np.float32)


def num_pyramid_levels(width: int, height: int) -> int:
    """Number of pyramid levels of a photo of that many pixels: the coarsest is the last one at least 64 pixels wide and
    one high."""
    if width < 1 or height < 1:
        raise ValueError(f"photo: expected at least 1 x 1 pixels, got {width} x {height}")
    return max(1, min((width // MIN_PYRAMID_WIDTH).bit_length(), height.bit_length()))


def reduce_box(image: NDArray[_Pixel], factor: int) -> NDArray[_Pixel]:
    """Mean over factor x factor blocks of a uint8 or float32 [h, w, c] image.

    Remainder rows and columns at the bottom and right are cropped. uint8 is rounded to nearest, halves up; float32 is
    summed in float64. Always a new array. ValueError if the image is smaller than a block.
    """
    _check_factor(image, factor)
    if factor == 1:
        return image.copy()
    if image.dtype == np.uint8:
        sums = _block_sums(image, factor, np.dtype(np.uint32))
        return _rounded_mean(sums, factor).astype(image.dtype)
    return (_block_sums(image, factor, np.dtype(np.float64)) / factor**2).astype(image.dtype)


def reduce_mask(mask: Bool, factor: int) -> Bool:
    """Reduction of a bool[h, w] mask (True = use): a block is usable only if all its pixels are.

    A pixel that is even partly masked shows a mixture with what must not be learned.
    """
    _check_factor(mask, factor)
    if factor == 1:
        return mask.copy()
    blocked = _block_sums((~mask)[:, :, None].view(np.uint8), factor, np.dtype(np.uint32))
    usable: Bool = blocked[:, :, 0] == 0
    return usable


def pyramid(image: UInt8, num_levels: int) -> list[UInt8]:
    """Levels 0 to num_levels − 1 of a uint8[h, w, c] photo: level p is the rounded mean of 2^p x 2^p blocks of level 0.

    Level 0 is the image itself, not a copy. Rounding does not add up over levels. ValueError if a level would be empty.
    """
    if num_levels < 1:
        raise ValueError(f"pyramid: expected at least 1 level, got {num_levels}")
    _check_factor(image, 2 ** (num_levels - 1))
    levels = [image]
    sums: AnyArray = image
    for level in range(1, num_levels):
        sums = _block_sums(sums, 2, np.dtype(np.uint32))
        levels.append(_rounded_mean(sums, 2**level).astype(np.uint8))
    return levels


def mask_pyramid(mask: Bool, num_levels: int) -> list[Bool]:
    """Levels 0 to num_levels − 1 of a bool[h, w] mask, reduced as `reduce_mask` does."""
    if num_levels < 1:
        raise ValueError(f"pyramid: expected at least 1 level, got {num_levels}")
    levels = [mask]
    for _ in range(1, num_levels):
        levels.append(reduce_mask(levels[-1], 2))
    return levels


def _check_factor(image: AnyArray, factor: int) -> None:
    height, width = image.shape[:2]
    if not 1 <= factor <= min(height, width, _MAX_FACTOR):
        raise ValueError(
            f"reduction factor: expected 1 to {min(height, width, _MAX_FACTOR)} for an image of {width}x{height}, "
            f"got {factor}"
        )


def _rounded_mean(sums: AnyArray, factor: int) -> AnyArray:
    area = factor * factor
    mean: AnyArray = (sums + area // 2) // area
    return mean


def _block_sums(image: AnyArray, factor: int, dtype: np.dtype[np.uint32] | np.dtype[np.float64]) -> AnyArray:
    """Sums over factor x factor blocks, [h // factor, w // factor, c] of `dtype`."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    # a column of blocks adds up to at most 255 · 257 in uint16, half the memory traffic of uint32
    narrow = image.dtype == np.uint8 and factor <= 257
    first = image[: height * factor : factor, : width * factor]
    rows: AnyArray = first.astype(np.uint16) if narrow else first.astype(dtype)
    for k in range(1, factor):
        rows += image[k : height * factor : factor, : width * factor]
    sums = np.empty((height, width, image.shape[2]), dtype=dtype)
    for channel in range(image.shape[2]):  # one channel at a time: numpy's inner loop then runs over a whole row
        sums[:, :, channel] = rows[:, ::factor, channel]
        for k in range(1, factor):
            sums[:, :, channel] += rows[:, k::factor, channel]
    return sums
