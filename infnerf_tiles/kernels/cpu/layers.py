"""All layers of the decoder and their gradients in one pass over the samples, some of them at a time.

Products keep channels in vectors and samples below one another, so that features, directions and weights are taken as
they lie. What the layers hand on stays in the cache; only what the gradient needs is kept.

Any number of threads may call a kernel with the same arguments: they take blocks of samples until there are none left.
Such kernels compile in a third of the time that numba's own parallel loops take.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.cpu.products import BIAS, MASK, PLAIN, RELU, convert, outer_sum, product
from infnerf_tiles.kernels.cpu.threads import take

BASIS = 16
ROWS = 96
"""Samples that pass through all layers together; a multiple of the rows that products compute side by side."""
BLOCK = 10 * ROWS
"""Samples of a task, whose gradients of the parameters are summed up before they meet those of others."""
COLOURS = 4
"""Channels of a colour and a spare one."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Channels of the layers, filled up to what vectors take."""

    features: int
    hidden: int
    geometry: int
    """With h_0."""
    pairs: bool
    """Whether the products' factors are pairs of bfloat16; otherwise float32."""

    @classmethod
    def of(cls, *, features: int, hidden: int, geometry: int, pairs: bool) -> Self:
        few = next((k for k in (4, 8) if k >= features), -(-features // 16) * 16)
        return cls(features=few, hidden=-(-hidden // 16) * 16, geometry=-(-geometry // 16) * 16, pairs=pairs)

    @property
    def seen(self) -> int:
        """Channels that the colour half starts from."""
        return self.geometry + BASIS

    @property
    def kept(self) -> int:
        """Elements that the gradient needs of the samples that pass together."""
        return self.elements(ROWS * (3 * self.hidden + self.seen))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of weights [out, in] and biases."""
        f, h, g, s = self.features, self.hidden, self.geometry, self.seen
        return (h, f), (h,), (g, h), (g,), (h, s), (h,), (h, h), (h,), (COLOURS, h), (COLOURS,)

    @property
    def kind(self) -> type[np.int32] | type[np.float32]:
        """Type of the elements of factors."""
        return np.int32 if self.pairs else np.float32

    def elements(self, values: int) -> int:
        """Elements of an array that as many values of a product's factor take."""
        return values // (1 + self.pairs)


@njit(cache=True, nogil=True)
def _copy_rows(source, first, here, target):  # type: ignore[no-untyped-def]
    """Copy `here` rows from row `first` on, and the last one again to fill up the target."""
    for i in range(target.shape[0]):
        for k in range(source.shape[1]):
            target[i, k] = source[first + min(i, here - 1), k]


@functools.cache
def forward_kernel(widths: Widths) -> Callable[..., None]:
    """(features, ray, basis, weights, biases, gain, bias, kept, exponent, colour, counter).

    Features float32 [M, F], ray int32 [M], basis [Q, 16] and weights [in, out] one after the other, both factors;
    biases float32, one after the other; kept [groups of ROWS samples, `Widths.kept`], or no groups to keep nothing;
    counter int64 [1], zero. Sets exponent float32 [M] = h_0 + gain f_0 - bias and colour float32 [M, 3], which is yet
    to go through a sigmoid.
    """
    few, hidden, geometry, seen = widths.features, widths.hidden, widths.geometry, widths.seen
    kind, size = widths.kind, widths.kept
    x_row, row, seen_row, at_basis, basis_row = map(widths.elements, (few, hidden, seen, geometry, BASIS))
    at_seen, at_z1, at_z2 = ROWS * row, ROWS * (row + seen_row), ROWS * (2 * row + seen_row)
    w2 = x_row * hidden
    w3 = w2 + row * geometry
    w4 = w3 + seen_row * hidden
    w5 = w4 + row * hidden
    b2 = hidden
    b3 = b2 + geometry
    b4, b5 = b3 + hidden, b3 + 2 * hidden

    @njit(cache=True, nogil=True)
    def forward(features, ray, basis, weights, biases, gain, bias, kept, exponent, colour, counter):  # type: ignore[no-untyped-def]
        num = features.shape[0]
        keep = kept.shape[0] > 0
        values = kept if keep else np.empty((1, size), kind)
        wide, x = np.zeros((ROWS, few), np.float32), np.empty((ROWS, x_row), kind)
        h, rgb = np.empty((ROWS, geometry), np.float32), np.empty((ROWS, COLOURS), np.float32)
        while True:
            block = take(counter)
            if block * BLOCK >= num:
                break
            for first in range(block * BLOCK, min((block + 1) * BLOCK, num), ROWS):
                here = min(ROWS, num - first)
                group = first // ROWS if keep else 0
                h1, h2, z1, z2 = group * size, group * size + at_seen, group * size + at_z1, group * size + at_z2
                _copy_rows(features, first, here, wide)
                towards = values[group, at_seen:]
                for i in range(ROWS):
                    own_ray = ray[first + min(i, here - 1)]
                    for k in range(basis_row):
                        towards[i * seen_row + at_basis + k] = basis[own_ray, k]
                convert(wide, 0, x, 0, ROWS, few, x_row)
                product(x, 0, weights, 0, values, h1, biases, 0, ROWS, hidden, x_row, x_row, hidden, row, RELU)
                product(values, h1, weights, w2, h, 0, biases, b2, ROWS, geometry, row, row, geometry, geometry, BIAS)
                convert(h, 0, values, h2, ROWS, geometry, seen_row)
                product(
                    values, h2, weights, w3, values, z1, biases, b3, ROWS, hidden, seen_row, seen_row, hidden, row, RELU
                )
                product(values, z1, weights, w4, values, z2, biases, b4, ROWS, hidden, row, row, hidden, row, RELU)
                product(values, z2, weights, w5, rgb, 0, biases, b5, ROWS, COLOURS, row, row, COLOURS, COLOURS, BIAS)
                for i in range(here):
                    exponent[first + i] = h[i, 0] + gain * features[first + i, 0] - bias
                    for k in range(3):
                        colour[first + i, k] = rgb[i, k]

    return forward


@functools.cache
def backward_kernel(widths: Widths) -> Callable[..., None]:
    """(features, kept, weights, exponent, sigma, colour, gain, highest, their gradients, grad, learned, counter).

    What `forward_kernel` took and gave, but weights [out, in] and the colour of the sigmoid; highest is where the
    exponent is clamped; gradients of sigma and of colour follow. Sets grad [M, F] of the features and adds those of the
    parameters to learned float32 [blocks, weights and biases as in `Widths.shapes`], unless that has no blocks.
    """
    few, hidden, geometry, seen = widths.features, widths.hidden, widths.geometry, widths.seen
    kind, size = widths.kind, widths.kept
    x_row, row, seen_row, h_row, rgb_row = map(widths.elements, (few, hidden, seen, geometry, COLOURS))
    at_seen, at_z1, at_z2 = ROWS * row, ROWS * (row + seen_row), ROWS * (2 * row + seen_row)
    w2 = row * few
    w3 = w2 + h_row * hidden
    w4 = w3 + row * seen
    w5 = w4 + row * hidden
    b1, g2, b2, g3, b3, g4, b4, g5, b5, total = itertools.accumulate(math.prod(shape) for shape in widths.shapes)
    spare_size = ROWS * (hidden + max(hidden, seen, few)) // 2 + 1

    @njit(cache=True, nogil=True)
    def backward(  # type: ignore[no-untyped-def]
        features, kept, weights, exponent, sigma, colour, gain, highest, grad_sigma, grad_colour, grad, learned, counter
    ):
        num, channels = features.shape
        learn = learned.shape[0] > 0
        steep = np.zeros(ROWS, np.float32)
        wide, dx = np.zeros((ROWS, few), np.float32), np.empty((ROWS, few), np.float32)
        rgb, h = np.zeros((ROWS, COLOURS), np.float32), np.empty((ROWS, geometry), np.float32)
        d1, d2, d3 = np.empty((ROWS, row), kind), np.empty((ROWS, h_row), kind), np.empty((ROWS, row), kind)
        d4, d5, x = np.empty((ROWS, row), kind), np.empty((ROWS, rgb_row), kind), np.empty((ROWS, x_row), kind)
        spare = np.empty(spare_size, kind)
        while True:
            block = take(counter)
            if block * BLOCK >= num:
                break
            for first in range(block * BLOCK, min((block + 1) * BLOCK, num), ROWS):
                here = min(ROWS, num - first)
                h1 = first // ROWS * size
                h2, z1, z2 = h1 + at_seen, h1 + at_z1, h1 + at_z2
                for i in range(here):
                    own = first + i
                    slope = grad_sigma[own] * sigma[own]
                    steep[i] = np.float32(0.0) if exponent[own] > highest else slope
                    for k in range(3):
                        c = colour[own, k]
                        rgb[i, k] = (np.float32(1.0) - c) * c * grad_colour[own, k]
                for i in range(here, ROWS):
                    steep[i] = np.float32(0.0)
                    for k in range(3):
                        rgb[i, k] = np.float32(0.0)
                convert(rgb, 0, d5, 0, ROWS, COLOURS, rgb_row)
                product(d5, 0, weights, w5, d4, 0, kept, z2, ROWS, hidden, rgb_row, rgb_row, hidden, row, MASK)
                product(d4, 0, weights, w4, d3, 0, kept, z1, ROWS, hidden, row, row, hidden, row, MASK)
                product(d3, 0, weights, w3, h, 0, h, 0, ROWS, geometry, row, row, seen, geometry, PLAIN)
                for i in range(ROWS):
                    h[i, 0] = steep[i]
                convert(h, 0, d2, 0, ROWS, geometry, h_row)
                product(d2, 0, weights, w2, d1, 0, kept, h1, ROWS, hidden, h_row, h_row, hidden, row, MASK)
                product(d1, 0, weights, 0, dx, 0, dx, 0, ROWS, few, row, row, few, few, PLAIN)
                for i in range(here):
                    dx[i, 0] += gain * steep[i]
                    for k in range(channels):
                        grad[first + i, k] = dx[i, k]
                if not learn:
                    continue
                _copy_rows(features, first, here, wide)
                convert(wide, 0, x, 0, ROWS, few, x_row)
                at = block * total
                outer_sum(d1, 0, x, 0, learned, at, learned, at + b1, spare, 0, ROWS, hidden, few, x_row)
                outer_sum(d2, 0, kept, h1, learned, at + g2, learned, at + b2, spare, 0, ROWS, geometry, hidden, row)
                outer_sum(d3, 0, kept, h2, learned, at + g3, learned, at + b3, spare, 0, ROWS, hidden, seen, seen_row)
                outer_sum(d4, 0, kept, z1, learned, at + g4, learned, at + b4, spare, 0, ROWS, hidden, hidden, row)
                outer_sum(d5, 0, kept, z2, learned, at + g5, learned, at + b5, spare, 0, ROWS, COLOURS, hidden, row)

    return backward


@functools.cache
def density_kernel(widths: Widths) -> Callable[..., None]:
    """(features, weights, biases, gain, bias, exponent, counter).

    As `forward_kernel`, with weights and biases of the first two layers, the second one being h_0 and three spare rows.
    """
    few, hidden = widths.features, widths.hidden
    kind = widths.kind
    x_row, row = widths.elements(few), widths.elements(hidden)
    w2 = x_row * hidden

    @njit(cache=True, nogil=True)
    def density(features, weights, biases, gain, bias, exponent, counter):  # type: ignore[no-untyped-def]
        num = features.shape[0]
        wide, x = np.zeros((ROWS, few), np.float32), np.empty((ROWS, x_row), kind)
        h1, h2 = np.empty((ROWS, row), kind), np.empty((ROWS, 4), np.float32)
        while True:
            block = take(counter)
            if block * BLOCK >= num:
                break
            for first in range(block * BLOCK, min((block + 1) * BLOCK, num), ROWS):
                here = min(ROWS, num - first)
                _copy_rows(features, first, here, wide)
                convert(wide, 0, x, 0, ROWS, few, x_row)
                product(x, 0, weights, 0, h1, 0, biases, 0, ROWS, hidden, x_row, x_row, hidden, row, RELU)
                product(h1, 0, weights, w2, h2, 0, biases, hidden, ROWS, 4, row, row, 4, 4, BIAS)
                for i in range(here):
                    exponent[first + i] = h2[i, 0] + gain * features[first + i, 0] - bias

    return density
